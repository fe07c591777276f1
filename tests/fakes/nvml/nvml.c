/* NVML's symbols for devices, their memory and their processes; meters.c has those for power and related readings. */
#include "calls.h"

#include <stdatomic.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <time.h>

typedef struct {
    unsigned long long total, free, used;
} nvmlMemory_t;

typedef struct {
    unsigned version;
    unsigned long long total, reserved, free, used;
} nvmlMemory_v2_t;

typedef struct {
    unsigned pid;
    unsigned long long used_gpu_memory;
    unsigned gpu_instance_id, compute_instance_id;
} nvmlProcessInfo_t;

typedef struct {
    char bus_id_legacy[16];
    unsigned domain, bus, device, pci_device_id, pci_subsystem_id;
    char bus_id[32];
} nvmlPciInfo_t;

_Static_assert(sizeof(nvmlMemory_v2_t) == 0x28, "the version number 0x02000028 holds the size");
_Static_assert(sizeof(nvmlProcessInfo_t) == 24, "as nvmlProcessInfo_v2_t");
_Static_assert(sizeof(nvmlPciInfo_t) == 68, "as nvmlPciInfo_v3_t");

static const unsigned MEMORY_V2 = 0x02000028;
static const unsigned long long NOT_AVAILABLE = ~0ULL;
static const unsigned NO_INSTANCE = ~0U;

static atomic_int users;

/* --- Handles: a number that encodes the address, so that they stay valid when the file is read again. --- */

static const uintptr_t HANDLE_MARK = 0x4e560000;

static nvmlDevice_t handle_of(struct address address) {
    return (nvmlDevice_t)(HANDLE_MARK | (uintptr_t)address.gpu << 8 | (uintptr_t)(address.instance + 1));
}

static bool address_of(nvmlDevice_t handle, struct address *address) {
    uintptr_t number = (uintptr_t)handle;
    if ((number & ~(uintptr_t)0xffff) != HANDLE_MARK) return false;
    address->gpu = (int)(number >> 8 & 0xff);
    address->instance = (int)(number & 0xff) - 1;
    return true;
}

static const struct device *find(const struct state *state, struct address address) {
    for (int i = 0; i < state->devices; i++) {
        if (same_address(state->device[i].address, address)) return &state->device[i];
    }
    return NULL;
}

/* --- Entry of every call. --- */

static bool names(const char *rule, const char *symbol) {
    size_t length = strlen(rule);
    return strncmp(rule, symbol, length) == 0 && (symbol[length] == '\0' || strncmp(symbol + length, "_v", 2) == 0);
}

static nvmlReturn_t follow_rules(const struct state *state, const char *symbol, const struct address *address) {
    for (int i = 0; i < state->rules; i++) {
        const struct rule *rule = &state->rule[i];
        bool here = address == NULL ? rule->address.gpu < 0 : rule->address.gpu >= 0 && within(*address, rule->address);
        if (!here || rule->field != 0 || rule->is_value || !names(rule->symbol, symbol)) continue;
        if (!rule_is_due(state, rule)) continue;
        struct timespec delay = {(time_t)(rule->delay_ms / 1000), (long)(rule->delay_ms % 1000) * 1000000};
        nanosleep(&delay, NULL);
        if (rule->error != SUCCESS) return rule->error;
    }
    return SUCCESS;
}

bool forged_value(
    const struct state *state, const struct device *device, const char *symbol, unsigned field,
    unsigned long long *value) {
    for (int i = 0; i < state->rules; i++) {
        const struct rule *rule = &state->rule[i];
        if (!rule->is_value || rule->field != field || !within(device->address, rule->address)) continue;
        if (!names(rule->symbol, symbol) || !rule_is_due(state, rule)) continue;
        *value = rule->value;
        return true;
    }
    return false;
}

static nvmlReturn_t load(const char *symbol, const struct state **state) {
    bool exists;
    *state = state_read(&exists);
    if (*state == NULL) return exists ? UNKNOWN : DRIVER_NOT_LOADED;
    return follow_rules(*state, symbol, NULL);
}

nvmlReturn_t enter(const char *symbol, const struct state **state) {
    return atomic_load(&users) > 0 ? load(symbol, state) : UNINITIALIZED;
}

/* An instance is lost together with its GPU. */
static bool is_gone(const struct state *state, struct address address) {
    const struct device *gpu = find(state, (struct address){address.gpu, -1});
    if (gpu == NULL) return false;
    double now_ms = state_now_ms(state);
    return now_ms >= gpu->gone_ms && now_ms < gpu->back_ms;
}

static nvmlReturn_t enter_address(
    const char *symbol, struct address address, nvmlReturn_t missing, const struct state **state,
    const struct device **device) {
    nvmlReturn_t status = enter(symbol, state);
    if (status != SUCCESS) return status;
    *device = find(*state, address);
    if (*device == NULL) return missing;
    if (is_gone(*state, address)) return GPU_IS_LOST;
    return follow_rules(*state, symbol, &address);
}

nvmlReturn_t enter_device(
    const char *symbol, nvmlDevice_t handle, const struct state **state, const struct device **device) {
    struct address address;
    if (!address_of(handle, &address)) return atomic_load(&users) > 0 ? INVALID_ARGUMENT : UNINITIALIZED;
    return enter_address(symbol, address, GPU_IS_LOST, state, device);
}

static nvmlReturn_t give_text(const char *text, char *buffer, unsigned length) {
    if (strlen(text) >= length) return INSUFFICIENT_SIZE;
    strcpy(buffer, text);
    return SUCCESS;
}

/* --- The library. --- */

nvmlReturn_t nvmlInitWithFlags(unsigned flags) {
    (void)flags;
    const struct state *state;
    nvmlReturn_t status = load(__func__, &state);
    if (status == SUCCESS) atomic_fetch_add(&users, 1);
    return status;
}

nvmlReturn_t nvmlInit_v2(void) {
    const struct state *state;
    nvmlReturn_t status = load(__func__, &state);
    if (status == SUCCESS) atomic_fetch_add(&users, 1);
    return status;
}

nvmlReturn_t nvmlShutdown(void) {
    int before = atomic_load(&users);
    while (before > 0 && !atomic_compare_exchange_weak(&users, &before, before - 1)) {
    }
    return before > 0 ? SUCCESS : UNINITIALIZED;
}

const char *nvmlErrorString(nvmlReturn_t result) {
    switch (result) {
        case SUCCESS: return "Success";
        case UNINITIALIZED: return "Uninitialized";
        case INVALID_ARGUMENT: return "Invalid Argument";
        case NOT_SUPPORTED: return "Not Supported";
        case NOT_FOUND: return "Not Found";
        case INSUFFICIENT_SIZE: return "Insufficient Size";
        case DRIVER_NOT_LOADED: return "Driver Not Loaded";
        case GPU_IS_LOST: return "GPU is lost";
        case NO_PERMISSION: return "Insufficient Permissions";
        case DEPRECATED: return "Deprecated";
        case ARGUMENT_VERSION_MISMATCH: return "Argument version mismatch";
        default: return "Unknown Error";
    }
}

nvmlReturn_t nvmlSystemGetDriverVersion(char *version, unsigned length) {
    ENTER();
    return give_text(state->driver, version, length);
}

/* --- Devices. --- */

nvmlReturn_t nvmlDeviceGetCount_v2(unsigned *count) {
    ENTER();
    *count = 0;
    for (int i = 0; i < state->devices; i++) *count += state->device[i].address.instance < 0;
    return SUCCESS;
}

nvmlReturn_t nvmlDeviceGetHandleByIndex_v2(unsigned index, nvmlDevice_t *handle) {
    const struct state *state;
    const struct device *device;
    struct address address = {(int)index, -1};
    nvmlReturn_t status = enter_address(__func__, address, INVALID_ARGUMENT, &state, &device);
    if (status == SUCCESS) *handle = handle_of(address);
    return status;
}

nvmlReturn_t nvmlDeviceGetHandleByUUID(const char *uuid, nvmlDevice_t *handle) {
    ENTER();
    for (int i = 0; i < state->devices; i++) {
        if (strcmp(state->device[i].uuid, uuid) != 0) continue;
        if (is_gone(state, state->device[i].address)) return GPU_IS_LOST;
        status = follow_rules(state, __func__, &state->device[i].address);
        if (status == SUCCESS) *handle = handle_of(state->device[i].address);
        return status;
    }
    return NOT_FOUND;
}

nvmlReturn_t nvmlDeviceGetUUID(nvmlDevice_t handle, char *uuid, unsigned length) {
    ENTER_DEVICE(handle);
    return give_text(device->uuid, uuid, length);
}

nvmlReturn_t nvmlDeviceGetName(nvmlDevice_t handle, char *name, unsigned length) {
    ENTER_DEVICE(handle);
    return give_text(device->name, name, length);
}

nvmlReturn_t nvmlDeviceGetIndex(nvmlDevice_t handle, unsigned *index) {
    ENTER_DEVICE(handle);
    *index = (unsigned)(device->address.instance < 0 ? device->address.gpu : device->address.instance);
    return SUCCESS;
}

nvmlReturn_t nvmlDeviceGetPciInfo_v3(nvmlDevice_t handle, nvmlPciInfo_t *info) {
    ENTER_DEVICE(handle);
    unsigned function;
    memset(info, 0, sizeof *info);
    if (device->pci[0] == '\0') return NOT_SUPPORTED;
    if (sscanf(device->pci, "%x:%x:%x.%x", &info->domain, &info->bus, &info->device, &function) != 4) return UNKNOWN;
    snprintf(info->bus_id, sizeof info->bus_id, "%08X:%02X:%02X.0", info->domain, info->bus, info->device);
    snprintf(
        info->bus_id_legacy, sizeof info->bus_id_legacy, "%04X:%02X:%02X.0", info->domain & 0xffff, info->bus & 0xff,
        info->device & 0xff);
    return SUCCESS;
}

/* --- Memory and the processes that hold it. --- */

static unsigned long long memory_in_use(const struct state *state, struct address address) {
    unsigned long long used = 0;
    for (int i = 0; i < state->devices; i++) {
        if (within(state->device[i].address, address)) used += state->device[i].memory_used;
    }
    for (int i = 0; i < state->processes; i++) {
        const struct process *process = &state->process[i];
        if (within(process->address, address) && process_holds(state, process)) used += process->memory;
    }
    return used;
}

nvmlReturn_t nvmlDeviceGetMemoryInfo(nvmlDevice_t handle, nvmlMemory_t *memory) {
    ENTER_DEVICE(handle);
    memory->total = device->memory_total;
    memory->used = memory_in_use(state, device->address) + device->memory_reserved;
    memory->free = memory->total - memory->used;
    return SUCCESS;
}

nvmlReturn_t nvmlDeviceGetMemoryInfo_v2(nvmlDevice_t handle, nvmlMemory_v2_t *memory) {
    ENTER_DEVICE(handle);
    if (memory->version != MEMORY_V2) return ARGUMENT_VERSION_MISMATCH;
    memory->total = device->memory_total;
    memory->reserved = device->memory_reserved;
    memory->used = memory_in_use(state, device->address);
    memory->free = memory->total - memory->used - memory->reserved;
    return SUCCESS;
}

static nvmlReturn_t list_processes(
    const struct state *state, const struct device *device, enum kind kind, unsigned *room, nvmlProcessInfo_t *infos) {
    const struct process *found[MAX_PROCESSES];
    unsigned count = 0;
    for (int i = 0; i < state->processes; i++) {
        const struct process *process = &state->process[i];
        if (process->kind == kind && within(process->address, device->address) && process_holds(state, process)) {
            found[count++] = process;
        }
    }
    unsigned given = *room;
    *room = count;
    if (count == 0) return SUCCESS;
    if (given < count) return INSUFFICIENT_SIZE;
    if (infos == NULL) return INVALID_ARGUMENT;
    for (unsigned i = 0; i < count; i++) {
        const struct device *instance = found[i]->address.instance < 0 ? NULL : find(state, found[i]->address);
        infos[i] = (nvmlProcessInfo_t){
            .pid = found[i]->listed_as != 0 ? found[i]->listed_as : found[i]->pid,
            .used_gpu_memory = found[i]->reported ? found[i]->memory : NOT_AVAILABLE,
            .gpu_instance_id = instance == NULL ? NO_INSTANCE : instance->gpu_instance,
            .compute_instance_id = instance == NULL ? NO_INSTANCE : instance->compute_instance,
        };
    }
    return SUCCESS;
}

nvmlReturn_t nvmlDeviceGetComputeRunningProcesses_v3(nvmlDevice_t handle, unsigned *count, nvmlProcessInfo_t *infos) {
    ENTER_DEVICE(handle);
    return list_processes(state, device, COMPUTE, count, infos);
}

/* The second version has the same layout; drivers before 510 have no third. */
nvmlReturn_t nvmlDeviceGetComputeRunningProcesses_v2(nvmlDevice_t handle, unsigned *count, nvmlProcessInfo_t *infos) {
    ENTER_DEVICE(handle);
    return list_processes(state, device, COMPUTE, count, infos);
}

nvmlReturn_t nvmlDeviceGetGraphicsRunningProcesses_v3(nvmlDevice_t handle, unsigned *count, nvmlProcessInfo_t *infos) {
    ENTER_DEVICE(handle);
    return list_processes(state, device, GRAPHICS, count, infos);
}

nvmlReturn_t nvmlDeviceGetMPSComputeRunningProcesses_v3(
    nvmlDevice_t handle, unsigned *count, nvmlProcessInfo_t *infos) {
    ENTER_DEVICE(handle);
    return list_processes(state, device, MPS, count, infos);
}

typedef struct {
    unsigned pid;
    unsigned long long time_stamp;
    unsigned sm_util, mem_util, enc_util, dec_util;
} nvmlProcessUtilizationSample_t;

nvmlReturn_t nvmlDeviceGetProcessUtilization(
    nvmlDevice_t handle, nvmlProcessUtilizationSample_t *samples, unsigned *count, unsigned long long last_seen_us) {
    ENTER_DEVICE(handle);
    struct timespec now;
    clock_gettime(CLOCK_REALTIME, &now);
    unsigned long long now_us = (unsigned long long)now.tv_sec * 1000000 + (unsigned long long)now.tv_nsec / 1000;
    unsigned found = 0, room = samples == NULL ? 0 : *count;
    for (int i = 0; i < state->processes; i++) {
        const struct process *process = &state->process[i];
        if (process->sm_percent == 0 || !within(process->address, device->address)) continue;
        if (!process_holds(state, process)) continue;
        if (found < room) {
            samples[found] = (nvmlProcessUtilizationSample_t){
                .pid = process->listed_as != 0 ? process->listed_as : process->pid,
                .time_stamp = now_us,
                .sm_util = process->sm_percent,
            };
        }
        found++;
    }
    (void)last_seen_us;
    *count = found;
    if (found == 0) return NOT_FOUND;
    return found > room ? INSUFFICIENT_SIZE : SUCCESS;
}

/* --- MIG. --- */

nvmlReturn_t nvmlDeviceGetMigMode(nvmlDevice_t handle, unsigned *current, unsigned *pending) {
    ENTER_DEVICE(handle);
    if (device->address.instance >= 0) return INVALID_ARGUMENT;
    if (!device->has_mig) return NOT_SUPPORTED;
    *current = *pending = device->mig_enabled;
    return SUCCESS;
}

nvmlReturn_t nvmlDeviceGetMaxMigDeviceCount(nvmlDevice_t handle, unsigned *count) {
    ENTER_DEVICE(handle);
    *count = device->address.instance < 0 && device->has_mig ? device->mig_slots : 0;
    return SUCCESS;
}

nvmlReturn_t nvmlDeviceGetMigDeviceHandleByIndex(nvmlDevice_t handle, unsigned index, nvmlDevice_t *instance) {
    ENTER_DEVICE(handle);
    if (device->address.instance >= 0) return INVALID_ARGUMENT;
    if (!device->mig_enabled) return NOT_SUPPORTED;
    if (index >= device->mig_slots) return INVALID_ARGUMENT;
    struct address address = {device->address.gpu, (int)index};
    if (find(state, address) == NULL) return NOT_FOUND;
    *instance = handle_of(address);
    return SUCCESS;
}

nvmlReturn_t nvmlDeviceIsMigDeviceHandle(nvmlDevice_t handle, unsigned *is_instance) {
    ENTER_DEVICE(handle);
    *is_instance = device->address.instance >= 0;
    return SUCCESS;
}

nvmlReturn_t nvmlDeviceGetDeviceHandleFromMigDeviceHandle(nvmlDevice_t instance, nvmlDevice_t *handle) {
    ENTER_DEVICE(instance);
    if (device->address.instance < 0) return INVALID_ARGUMENT;
    *handle = handle_of((struct address){device->address.gpu, -1});
    return SUCCESS;
}

nvmlReturn_t nvmlDeviceGetGpuInstanceId(nvmlDevice_t handle, unsigned *id) {
    ENTER_DEVICE(handle);
    if (device->address.instance < 0) return INVALID_ARGUMENT;
    *id = device->gpu_instance;
    return SUCCESS;
}

nvmlReturn_t nvmlDeviceGetComputeInstanceId(nvmlDevice_t handle, unsigned *id) {
    ENTER_DEVICE(handle);
    if (device->address.instance < 0) return INVALID_ARGUMENT;
    *id = device->compute_instance;
    return SUCCESS;
}
