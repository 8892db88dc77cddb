/* A small libnvidia-ml.so.1 for tests: the real pynvml loads it and cannot tell.
 *
 * What it says stands in `machine.txt` beside the library, read again at every call (replace it by rename). One fact a
 * line; GPU is an index or *:
 *
 *     count * 2                  uuid 0 GPU-abc        name 0 NVIDIA H100      driver * 580.65.06   pci 0 00000000:01:00.0
 *     mem.total 0 BYTES          mem.used 0 BYTES      mem.reserved 0 BYTES    temp 0 C             util 0 PERCENT
 *     power 0 MILLIWATT          limit 0 MILLIWATT     mig 0 1                 proc 0 PID:BYTES     graphics 0 PID:BYTES
 *     ret.<fn|*> GPU CODE        that call answers with this NVML error        (grow.<fn> GPU N: N times «too small»)
 *     hang.<fn|*> GPU MS         that call takes so long first
 *     crash.<fn|*> GPU 1         that call aborts the process
 *     garbage 0 1                the process structure has 32 bytes, as in one broken release
 *     nvlink 0 NAME              devices with the same NAME have NVLink between them      node 0 N   its NUMA node
 *
 * -DOLD_DRIVER leaves out the _v3 process calls, memory version 2 and the newer temperature call.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

typedef int ret_t;
typedef struct gpu { int index; } *dev_t_;
typedef unsigned long long u64;
static struct gpu gpus[64];

static FILE *machine(void) {
    static char path[4096];
    if (!path[0]) {
        Dl_info info;
        if (!dladdr((void *)machine, &info)) return NULL;
        snprintf(path, sizeof path, "%s", info.dli_fname);
        char *slash = strrchr(path, '/');
        snprintf(slash ? slash + 1 : path, 16, "machine.txt");
    }
    return fopen(path, "r");
}

/* The n-th value of a fact about a GPU (its own line or one with *); 0 if there is none. */
static int fact(const char *key, int gpu, int n, char *out, size_t size) {
    char line[512], k[128], who[16], value[256];
    int found = 0;
    FILE *file = machine();
    if (!file) return 0;
    while (!found && fgets(line, sizeof line, file)) {
        if (sscanf(line, "%127s %15s %255[^\n]", k, who, value) != 3 || strcmp(k, key)) continue;
        if (strcmp(who, "*") && (gpu < 0 || atoi(who) != gpu)) continue;
        if (n-- > 0) continue;
        snprintf(out, size, "%s", value);
        found = 1;
    }
    fclose(file);
    return found;
}

static u64 number(const char *key, int gpu, u64 otherwise) {
    char value[256];
    return fact(key, gpu, 0, value, sizeof value) ? strtoull(value, NULL, 10) : otherwise;
}

static u64 injected(const char *what, const char *fn, int gpu) {
    char key[128];
    snprintf(key, sizeof key, "%s.%s", what, fn);
    u64 value = number(key, gpu, 0);
    snprintf(key, sizeof key, "%s.*", what);
    return value ? value : number(key, gpu, 0);
}

static ret_t trouble(const char *fn, int gpu) {
    u64 ms = injected("hang", fn, gpu);
    if (ms) usleep(ms * 1000);
    if (injected("crash", fn, gpu)) { fprintf(stderr, "double: %s aborts\n", fn); abort(); }
    return (ret_t)injected("ret", fn, gpu);
}

#define ENTER(gpu) do { ret_t r_ = trouble(__func__, gpu); if (r_) return r_; } while (0)
#define NEED(key) do { char v_[256]; if (!fact(key, d->index, 0, v_, sizeof v_)) return 3; } while (0)

static ret_t text(const char *key, int gpu, char *out, unsigned size) {
    char value[256];
    if (!fact(key, gpu, 0, value, sizeof value)) return 3;
    if (strlen(value) + 1 > size) return 7;
    strcpy(out, value);
    return 0;
}

ret_t nvmlInitWithFlags(unsigned flags) { (void)flags; ENTER(-1); return 0; }
ret_t nvmlShutdown(void) { ENTER(-1); return 0; }
const char *nvmlErrorString(ret_t code) { (void)code; return "an error of the double"; }
ret_t nvmlSystemGetDriverVersion(char *out, unsigned size) { ENTER(-1); return text("driver", -1, out, size); }
ret_t nvmlDeviceGetCount_v2(unsigned *n) { ENTER(-1); *n = (unsigned)number("count", -1, 0); return 0; }

ret_t nvmlDeviceGetHandleByIndex_v2(unsigned index, dev_t_ *d) {
    ENTER((int)index);
    if (index >= number("count", -1, 0) || index >= 64) return 2;
    gpus[index].index = (int)index;
    *d = &gpus[index];
    return 0;
}
ret_t nvmlDeviceGetUUID(dev_t_ d, char *out, unsigned size) { ENTER(d->index); return text("uuid", d->index, out, size); }
ret_t nvmlDeviceGetName(dev_t_ d, char *out, unsigned size) { ENTER(d->index); return text("name", d->index, out, size); }

struct pci { char legacy[16]; unsigned domain, bus, device, id, subsystem; char bus_id[32]; };
ret_t nvmlDeviceGetPciInfo_v3(dev_t_ d, struct pci *info) {
    ENTER(d->index);
    memset(info, 0, sizeof *info);
    return text("pci", d->index, info->bus_id, sizeof info->bus_id);
}

/* Version 1 counts what the driver reserves as used, version 2 does not. */
struct memory { u64 total, free, used; };
ret_t nvmlDeviceGetMemoryInfo(dev_t_ d, struct memory *m) {
    ENTER(d->index);
    m->total = number("mem.total", d->index, 0);
    m->used = number("mem.used", d->index, 0) + number("mem.reserved", d->index, 0);
    m->free = m->total - m->used;
    return 0;
}
#ifndef OLD_DRIVER
struct memory_v2 { unsigned version; u64 total, reserved, free, used; };
ret_t nvmlDeviceGetMemoryInfo_v2(dev_t_ d, struct memory_v2 *m) {
    ENTER(d->index);
    if (m->version != 0x02000028) return 25;
    m->total = number("mem.total", d->index, 0);
    m->used = number("mem.used", d->index, 0);
    m->reserved = number("mem.reserved", d->index, 0);
    m->free = m->total - m->used - m->reserved;
    return 0;
}
struct temperature { unsigned version, sensor; int value; };
ret_t nvmlDeviceGetTemperatureV(dev_t_ d, struct temperature *t) {
    ENTER(d->index);
    NEED("temp");
    t->value = (int)number("temp", d->index, 0);
    return 0;
}
#endif
ret_t nvmlDeviceGetTemperature(dev_t_ d, unsigned sensor, unsigned *t) {
    (void)sensor;
    ENTER(d->index);
    NEED("temp");
    *t = (unsigned)number("temp", d->index, 0);
    return 0;
}
struct utilization { unsigned gpu, memory; };
ret_t nvmlDeviceGetUtilizationRates(dev_t_ d, struct utilization *u) {
    ENTER(d->index);
    NEED("util");
    u->gpu = (unsigned)number("util", d->index, 0);
    u->memory = 0;
    return 0;
}
ret_t nvmlDeviceGetPowerUsage(dev_t_ d, unsigned *mw) {
    ENTER(d->index);
    NEED("power");
    *mw = (unsigned)number("power", d->index, 0);
    return 0;
}
ret_t nvmlDeviceGetEnforcedPowerLimit(dev_t_ d, unsigned *mw) {
    ENTER(d->index);
    NEED("limit");
    *mw = (unsigned)number("limit", d->index, 0);
    return 0;
}
ret_t nvmlDeviceGetMigMode(dev_t_ d, unsigned *current, unsigned *pending) {
    ENTER(d->index);
    NEED("mig");
    *current = *pending = (unsigned)number("mig", d->index, 0);
    return 0;
}

static int alike(const char *key, dev_t_ a, dev_t_ b) {
    char one[256], other[256];
    if (!fact(key, a->index, 0, one, sizeof one) || !fact(key, b->index, 0, other, sizeof other)) return 0;
    return !strcmp(one, other);
}
ret_t nvmlDeviceGetP2PStatus(dev_t_ d, dev_t_ other, int what, int *status) {
    ENTER(d->index);
    *status = what == 2 && alike("nvlink", d, other) ? 0 : 5;
    return 0;
}
ret_t nvmlDeviceGetTopologyCommonAncestor(dev_t_ d, dev_t_ other, int *level) {
    ENTER(d->index);
    NEED("node");
    *level = alike("node", d, other) ? 40 : 50;
    return 0;
}

struct process { unsigned pid; u64 mem; unsigned gi, ci; };
struct broken_process { struct process process; u64 more; };
static ret_t processes(const char *key, const char *fn, dev_t_ d, unsigned *n, struct process *out) {
    static u64 refused;
    char value[256];
    unsigned have = 0, broken = (unsigned)number("garbage", d->index, 0);
    while (fact(key, d->index, (int)have, value, sizeof value)) have++;
    unsigned room = *n;
    *n = have;
    if (!have) return 0;
    if (out && refused < injected("grow", fn, d->index)) { refused++; return 7; }
    if (!out || room < have) return 7;
    for (unsigned i = 0; i < have; i++) {
        unsigned pid; u64 mem;
        fact(key, d->index, (int)i, value, sizeof value);
        if (sscanf(value, "%u:%llu", &pid, &mem) != 2) return 999;
        struct broken_process entry = {{pid, mem, 0xffffffff, 0xffffffff}, 0};
        if (broken) memcpy((char *)out + i * sizeof entry, &entry, sizeof entry);
        else out[i] = entry.process;
    }
    return 0;
}
ret_t nvmlDeviceGetComputeRunningProcesses_v2(dev_t_ d, unsigned *n, struct process *out) {
    ENTER(d->index);
    return processes("proc", __func__, d, n, out);
}
ret_t nvmlDeviceGetGraphicsRunningProcesses_v2(dev_t_ d, unsigned *n, struct process *out) {
    ENTER(d->index);
    return processes("graphics", __func__, d, n, out);
}
#ifndef OLD_DRIVER
ret_t nvmlDeviceGetComputeRunningProcesses_v3(dev_t_ d, unsigned *n, struct process *out) {
    ENTER(d->index);
    return processes("proc", __func__, d, n, out);
}
ret_t nvmlDeviceGetGraphicsRunningProcesses_v3(dev_t_ d, unsigned *n, struct process *out) {
    ENTER(d->index);
    return processes("graphics", __func__, d, n, out);
}
#endif
