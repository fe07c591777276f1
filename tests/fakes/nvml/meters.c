/* NVML's symbols for power, energy, temperature, clocks, use and throttling: curves as the chip's sensors show them. */
#include "calls.h"

#include <math.h>
#include <pthread.h>
#include <stdint.h>
#include <time.h>

typedef union {
    double dVal;
    unsigned uiVal;
    unsigned long ulVal;
    unsigned long long ullVal;
    long long sllVal;
    int siVal;
    unsigned short usVal;
} nvmlValue_t;

typedef struct {
    uint32_t field_id, scope_id;
    int64_t timestamp, latency_us;
    unsigned value_type;
    nvmlReturn_t nvml_return;
    nvmlValue_t value;
} nvmlFieldValue_t;

typedef struct {
    unsigned gpu, memory;
} nvmlUtilization_t;

typedef struct {
    unsigned version;
    unsigned sensor_type;
    int temperature;
} nvmlTemperature_v1_t;

_Static_assert(sizeof(nvmlFieldValue_t) == 40, "as c_nvmlFieldValue_t");
_Static_assert(sizeof(nvmlTemperature_v1_t) == 0xc, "the version number 0x0100000c holds the size");

static const unsigned TEMPERATURE_V1 = 0x0100000c;

enum { VALUE_UNSIGNED_INT = 1, VALUE_UNSIGNED_LONG_LONG = 3 };
enum { CLOCK_SM = 1, CLOCK_MEM = 2 };
enum { SCOPE_GPU = 0, SCOPE_MODULE = 1, SCOPE_MEMORY = 2 };
enum { POLICY_POWER = 0, POLICY_THERMAL = 1, POLICY_BOARD = 3, POLICY_RELIABILITY = 5 };
enum {
    FI_TOTAL_ENERGY = 83,
    FI_POWER_AVERAGE = 185,
    FI_POWER_INSTANT = 186,
    FI_POWER_MIN_LIMIT = 187,
    FI_POWER_MAX_LIMIT = 188,
    FI_POWER_DEFAULT_LIMIT = 189,
    FI_POWER_CURRENT_LIMIT = 190,
};

/* Time of the last update of a value with an update period. */
static double newest_ms(const struct state *state, double period_ms) {
    double now_ms = state_now_ms(state);
    return period_ms > 0 ? floor(now_ms / period_ms) * period_ms : now_ms;
}

static unsigned long long whole(double value) { return (unsigned long long)llround(value); }

/* What the calls of this process have caused on each GPU. */
struct awake {
    double last_ms;                /* of the newest call; 0 before the first */
    double extra_mj;               /* in all until then */
    double shown_ms, shown_mj;     /* as of the newest update of the counter */
};

static pthread_mutex_t awake_lock = PTHREAD_MUTEX_INITIALIZER;
static struct awake awake[MAX_DEVICES];

/* Count a call; returns the power that those before it have caused at its time, and sets the energy that the counter
 * shows for them, which was updated at `update_ms`. */
static double wake(const struct state *state, const struct device *device, double update_ms, double *shown_mj) {
    const struct sensor *sensor = &device->sensor;
    if (shown_mj != NULL) *shown_mj = 0;
    if (sensor->wake_w == 0 || device->address.gpu >= MAX_DEVICES) return 0;
    double now_ms = state_now_ms(state), watts = 0;
    pthread_mutex_lock(&awake_lock);
    struct awake *one = &awake[device->address.gpu];
    if (one->last_ms > 0) {
        if (now_ms - one->last_ms < sensor->wake_ms) watts = sensor->wake_w;
        one->extra_mj += sensor->wake_w * fmin(now_ms - one->last_ms, sensor->wake_ms);
    }
    one->last_ms = now_ms;
    if (shown_mj != NULL) {
        if (update_ms > one->shown_ms) {
            one->shown_ms = update_ms;
            one->shown_mj = one->extra_mj;
        }
        *shown_mj = one->shown_mj;
    }
    pthread_mutex_unlock(&awake_lock);
    return watts;
}

static nvmlReturn_t power_mw(
    const struct state *state, const struct device *device, enum quantity quantity, double window_ms,
    unsigned *milliwatts) {
    const struct curve *power = &device->curve[quantity];
    if (power->shape == ABSENT) return NOT_SUPPORTED;
    double at_ms = newest_ms(state, device->sensor.period_ms);
    double watts = curve_mean(power, at_ms - window_ms, at_ms) * device->sensor.gain + device->sensor.offset_w;
    watts += wake(state, device, at_ms, NULL);
    *milliwatts = (unsigned)whole(fmax(0, watts) * 1000);
    return SUCCESS;
}

/* W times ms is mJ. */
static nvmlReturn_t energy_mj(const struct state *state, const struct device *device, unsigned long long *millijoules) {
    const struct curve *power = &device->curve[POWER];
    const struct counter *counter = &device->counter;
    if (power->shape == ABSENT || !counter->supported) return NOT_SUPPORTED;
    double at_ms = newest_ms(state, counter->period_ms), from_ms = 0, extra_mj;
    wake(state, device, at_ms, &extra_mj);
    if (at_ms >= counter->stall_ms && at_ms < counter->resume_ms) at_ms = counter->stall_ms;
    if (at_ms >= counter->reset_ms) from_ms = counter->reset_ms;
    double total_mj = fmax(0, curve_integral(power, at_ms) - curve_integral(power, from_ms)) * counter->gain;
    total_mj += extra_mj;
    if (at_ms >= counter->leap_ms) total_mj += counter->leap_mj;
    unsigned long long quanta = (unsigned long long)(total_mj / (double)counter->quantum_mj);
    *millijoules = (from_ms > 0 ? 0 : counter->base_mj) + quanta * counter->quantum_mj;
    return SUCCESS;
}

static nvmlReturn_t now_of(
    const struct state *state, const struct device *device, enum quantity quantity, unsigned long long *value) {
    const struct curve *curve = &device->curve[quantity];
    if (curve->shape == ABSENT) return NOT_SUPPORTED;
    *value = whole(curve_at(curve, state_now_ms(state)));
    return SUCCESS;
}

static nvmlReturn_t limit(const struct device *device, unsigned known_mw, unsigned *milliwatts) {
    if (!device->limits.known) return NOT_SUPPORTED;
    *milliwatts = known_mw;
    return SUCCESS;
}

nvmlReturn_t nvmlDeviceGetTotalEnergyConsumption(nvmlDevice_t handle, unsigned long long *millijoules) {
    ENTER_DEVICE(handle);
    return forged_value(state, device, __func__, 0, millijoules) ? SUCCESS : energy_mj(state, device, millijoules);
}

nvmlReturn_t nvmlDeviceGetPowerUsage(nvmlDevice_t handle, unsigned *milliwatts) {
    ENTER_DEVICE(handle);
    unsigned long long forged;
    if (forged_value(state, device, __func__, 0, &forged)) {
        *milliwatts = (unsigned)forged;
        return SUCCESS;
    }
    return power_mw(state, device, POWER, device->sensor.average_ms, milliwatts);
}

/* --- Fields: many values in one call, each with its own status. --- */

static nvmlReturn_t field_error(const struct state *state, const struct device *device, unsigned field) {
    for (int i = 0; i < state->rules; i++) {
        const struct rule *rule = &state->rule[i];
        if (rule->field != field || rule->is_value || !within(device->address, rule->address)) continue;
        if (rule_is_due(state, rule)) return rule->error;
    }
    return SUCCESS;
}

/* GPUs without a module have the scope of the GPU alone. */
static nvmlReturn_t scoped_mw(
    const struct state *state, const struct device *device, unsigned scope, double window_ms, unsigned *milliwatts) {
    enum quantity quantity = scope == SCOPE_MODULE ? MODULE_POWER : scope == SCOPE_MEMORY ? MEMORY_POWER : POWER;
    if (scope > SCOPE_MEMORY) return INVALID_ARGUMENT;
    return power_mw(state, device, quantity, window_ms, milliwatts);
}

static nvmlReturn_t fill(const struct state *state, const struct device *device, nvmlFieldValue_t *field) {
    unsigned *small = &field->value.uiVal;
    nvmlReturn_t wrong = field_error(state, device, field->field_id);
    unsigned long long forged;
    if (wrong != SUCCESS) return wrong;
    field->value_type = VALUE_UNSIGNED_INT;
    if (forged_value(state, device, "nvmlDeviceGetFieldValues", field->field_id, &forged)) {
        field->value.ullVal = forged;
        return SUCCESS;
    }
    switch (field->field_id) {
        case FI_TOTAL_ENERGY:
            field->value_type = VALUE_UNSIGNED_LONG_LONG;
            return energy_mj(state, device, &field->value.ullVal);
        case FI_POWER_AVERAGE: return scoped_mw(state, device, field->scope_id, device->sensor.average_ms, small);
        case FI_POWER_INSTANT:
            /* Of memory there is no instant reading (NVIDIA/k8s-test-infra#676, from a GB300). */
            if (!device->sensor.has_instant || field->scope_id == SCOPE_MEMORY) return NOT_SUPPORTED;
            return scoped_mw(state, device, field->scope_id, device->sensor.window_ms, small);
        case FI_POWER_MIN_LIMIT: return limit(device, device->limits.min_mw, small);
        case FI_POWER_MAX_LIMIT: return limit(device, device->limits.max_mw, small);
        case FI_POWER_DEFAULT_LIMIT: return limit(device, device->limits.default_mw, small);
        case FI_POWER_CURRENT_LIMIT: return limit(device, device->limits.current_mw, small);
        default: return NOT_SUPPORTED;
    }
}

nvmlReturn_t nvmlDeviceGetFieldValues(nvmlDevice_t handle, int count, nvmlFieldValue_t *fields) {
    ENTER_DEVICE(handle);
    if (count <= 0 || fields == NULL) return INVALID_ARGUMENT;
    struct timespec now;
    clock_gettime(CLOCK_REALTIME, &now);
    for (int i = 0; i < count; i++) {
        fields[i].value.ullVal = 0;
        fields[i].timestamp = (int64_t)now.tv_sec * 1000000 + now.tv_nsec / 1000;
        fields[i].latency_us = 0;
        fields[i].nvml_return = fill(state, device, &fields[i]);
    }
    return SUCCESS;
}

/* --- Temperature, clocks, use, throttling. --- */

nvmlReturn_t nvmlDeviceGetTemperature(nvmlDevice_t handle, unsigned sensor, unsigned *celsius) {
    ENTER_DEVICE(handle);
    unsigned long long value;
    if (sensor != 0) return INVALID_ARGUMENT;
    status = now_of(state, device, TEMPERATURE, &value);
    if (status == SUCCESS) *celsius = (unsigned)value;
    return status;
}

nvmlReturn_t nvmlDeviceGetTemperatureV(nvmlDevice_t handle, nvmlTemperature_v1_t *reading) {
    ENTER_DEVICE(handle);
    unsigned long long value;
    if (reading->version != TEMPERATURE_V1) return ARGUMENT_VERSION_MISMATCH;
    if (reading->sensor_type != 0) return INVALID_ARGUMENT;
    status = now_of(state, device, TEMPERATURE, &value);
    if (status == SUCCESS) reading->temperature = (int)value;
    return status;
}

nvmlReturn_t nvmlDeviceGetClockInfo(nvmlDevice_t handle, unsigned type, unsigned *mhz) {
    ENTER_DEVICE(handle);
    unsigned long long value;
    if (type != CLOCK_SM && type != CLOCK_MEM) return NOT_SUPPORTED;
    status = now_of(state, device, type == CLOCK_SM ? SM_CLOCK : MEMORY_CLOCK, &value);
    if (status == SUCCESS) *mhz = (unsigned)value;
    return status;
}

nvmlReturn_t nvmlDeviceGetUtilizationRates(nvmlDevice_t handle, nvmlUtilization_t *use) {
    ENTER_DEVICE(handle);
    unsigned long long gpu, memory;
    status = now_of(state, device, GPU_USE, &gpu);
    if (status == SUCCESS) status = now_of(state, device, MEMORY_USE, &memory);
    if (status == SUCCESS) *use = (nvmlUtilization_t){(unsigned)gpu, (unsigned)memory};
    return status;
}

nvmlReturn_t nvmlDeviceGetCurrentClocksEventReasons(nvmlDevice_t handle, unsigned long long *reasons) {
    ENTER_DEVICE(handle);
    return now_of(state, device, THROTTLE, reasons);
}

/* The name until driver 535. */
nvmlReturn_t nvmlDeviceGetCurrentClocksThrottleReasons(nvmlDevice_t handle, unsigned long long *reasons) {
    ENTER_DEVICE(handle);
    return now_of(state, device, THROTTLE, reasons);
}

typedef struct {
    unsigned long long reference_us, violation_ns;
} nvmlViolationTime_t;

nvmlReturn_t nvmlDeviceGetViolationStatus(nvmlDevice_t handle, unsigned policy, nvmlViolationTime_t *time) {
    ENTER_DEVICE(handle);
    enum quantity quantity = policy == POLICY_POWER ? VIOLATION_POWER
        : policy == POLICY_THERMAL                  ? VIOLATION_THERMAL
        : policy == POLICY_BOARD                    ? VIOLATION_BOARD
        : policy == POLICY_RELIABILITY              ? VIOLATION_RELIABILITY
                                                    : QUANTITIES;
    if (quantity == QUANTITIES || device->curve[quantity].shape == ABSENT) return NOT_SUPPORTED;
    double now_ms = state_now_ms(state);
    time->reference_us = whole(fmax(0, now_ms) * 1e3);
    time->violation_ns = whole(fmax(0, curve_integral(&device->curve[quantity], now_ms)) * 1e6);
    return SUCCESS;
}

/* --- Limits of power. --- */

nvmlReturn_t nvmlDeviceGetEnforcedPowerLimit(nvmlDevice_t handle, unsigned *milliwatts) {
    ENTER_DEVICE(handle);
    bool is_later = state_now_ms(state) >= device->limits.later_ms;
    return limit(device, is_later ? device->limits.later_enforced_mw : device->limits.enforced_mw, milliwatts);
}

nvmlReturn_t nvmlDeviceGetPowerManagementLimit(nvmlDevice_t handle, unsigned *milliwatts) {
    ENTER_DEVICE(handle);
    return limit(device, device->limits.current_mw, milliwatts);
}

nvmlReturn_t nvmlDeviceGetPowerManagementDefaultLimit(nvmlDevice_t handle, unsigned *milliwatts) {
    ENTER_DEVICE(handle);
    return limit(device, device->limits.default_mw, milliwatts);
}

nvmlReturn_t nvmlDeviceGetPowerManagementLimitConstraints(nvmlDevice_t handle, unsigned *least_mw, unsigned *most_mw) {
    ENTER_DEVICE(handle);
    status = limit(device, device->limits.min_mw, least_mw);
    return status == SUCCESS ? limit(device, device->limits.max_mw, most_mw) : status;
}
