"""What the API can do: one file per verb or group of verbs, with the names of the commands in cli/.

A verb turns a Call into events or queries and the answer into JSON. It decides nothing about jobs.
"""
