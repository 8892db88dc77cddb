"""HTTP over a Unix socket: who calls (the kernel says), what they may send, and how errors look. No decisions."""
