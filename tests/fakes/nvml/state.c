/* Reads the state file. A line has a keyword, an address, and pairs of key and value. */
#include "state.h"

#include <math.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

enum { LINE = 65536 };

static _Thread_local struct state current;

/* The next word of a line, without quotes; NULL at its end. */
static char *next_word(char **rest) {
    char *word = *rest + strspn(*rest, " \t\r\n");
    if (*word == '\0' || *word == '#') return NULL;
    char *end;
    if (*word == '"') {
        end = strchr(++word, '"');
        if (end == NULL) return NULL;
    } else {
        end = word + strcspn(word, " \t\r\n");
    }
    *rest = *end == '\0' ? end : end + 1;
    *end = '\0';
    return word;
}

static bool to_text(const char *value, char *text) {
    if (strlen(value) >= TEXT) return false;
    strcpy(text, value);
    return true;
}

static bool to_number(const char *value, unsigned long long *number) {
    char *end;
    *number = strtoull(value, &end, 10);
    return *value != '\0' && *end == '\0';
}

static bool to_unsigned(const char *value, unsigned *number) {
    unsigned long long wide;
    if (!to_number(value, &wide)) return false;
    *number = (unsigned)wide;
    return true;
}

static bool to_real(const char *value, double *number) {
    char *end;
    *number = strtod(value, &end);
    return *value != '\0' && *end == '\0' && isfinite(*number);
}

static bool to_mw(const char *value, unsigned *mw) {
    double watts;
    if (!to_real(value, &watts)) return false;
    *mw = (unsigned)lround(watts * 1000);
    return true;
}

static bool to_flag(const char *value, bool *flag) {
    *flag = strcmp(value, "yes") == 0;
    return *flag || strcmp(value, "no") == 0;
}

static bool parse_address(const char *value, struct address *address) {
    char dot;
    address->instance = -1;
    int parts = value == NULL ? 0 : sscanf(value, "%d%c%d", &address->gpu, &dot, &address->instance);
    return parts == 1 || (parts == 3 && dot == '.');
}

static bool device_key(struct device *device, const char *key, const char *value) {
    if (strcmp(key, "uuid") == 0) return to_text(value, device->uuid);
    if (strcmp(key, "name") == 0) return to_text(value, device->name);
    if (strcmp(key, "pci") == 0) return to_text(value, device->pci);
    if (strcmp(key, "memory_total") == 0) return to_number(value, &device->memory_total);
    if (strcmp(key, "memory_used") == 0) return to_number(value, &device->memory_used);
    if (strcmp(key, "memory_reserved") == 0) return to_number(value, &device->memory_reserved);
    if (strcmp(key, "mig_slots") == 0) return to_unsigned(value, &device->mig_slots);
    if (strcmp(key, "gi") == 0) return to_unsigned(value, &device->gpu_instance);
    if (strcmp(key, "ci") == 0) return to_unsigned(value, &device->compute_instance);
    if (strcmp(key, "gone_ms") == 0) return to_real(value, &device->gone_ms);
    if (strcmp(key, "back_ms") == 0) return to_real(value, &device->back_ms);
    if (strcmp(key, "mig") == 0) {
        device->has_mig = true;
        return to_flag(value, &device->mig_enabled);
    }
    return false;
}

static bool process_key(struct process *process, const char *key, const char *value) {
    unsigned long long number;
    if (strcmp(key, "pid") == 0 && strcmp(value, "self") == 0) {
        process->pid = (unsigned)getpid();
        return true;
    }
    if (strcmp(key, "pid") == 0) return to_unsigned(value, &process->pid);
    if (strcmp(key, "memory") == 0) return to_number(value, &process->memory);
    if (strcmp(key, "reported") == 0) return to_flag(value, &process->reported);
    if (strcmp(key, "bound") == 0) return to_flag(value, &process->bound);
    if (strcmp(key, "from_ms") == 0) return to_real(value, &process->from_ms);
    if (strcmp(key, "until_ms") == 0) return to_real(value, &process->until_ms);
    if (strcmp(key, "listed_as") == 0) return to_unsigned(value, &process->listed_as);
    if (strcmp(key, "sm") == 0) return to_unsigned(value, &process->sm_percent);
    if (strcmp(key, "lingers_ms") == 0) {
        bool good = to_number(value, &number);
        process->lingers_ms = (unsigned long)number;
        return good;
    }
    if (strcmp(key, "kind") == 0) {
        process->kind = strcmp(value, "graphics") == 0 ? GRAPHICS : strcmp(value, "mps") == 0 ? MPS : COMPUTE;
        return process->kind != COMPUTE || strcmp(value, "compute") == 0;
    }
    return false;
}

static bool read_device(char *rest) {
    if (current.devices == MAX_DEVICES) return false;
    struct device *device = &current.device[current.devices++];
    *device = (struct device){
        .mig_slots = 7,
        .gone_ms = INFINITY,
        .back_ms = INFINITY,
        .sensor = {.gain = 1, .average_ms = 1000, .has_instant = true},
        .counter =
            {.supported = true,
             .quantum_mj = 1,
             .gain = 1,
             .stall_ms = INFINITY,
             .resume_ms = INFINITY,
             .leap_ms = INFINITY,
             .reset_ms = INFINITY},
        .limits = {.later_ms = INFINITY}};
    if (!parse_address(next_word(&rest), &device->address)) return false;
    for (char *key, *value; (key = next_word(&rest)) != NULL;) {
        if ((value = next_word(&rest)) == NULL || !device_key(device, key, value)) return false;
    }
    return true;
}

static bool read_process(char *rest) {
    if (current.processes == MAX_PROCESSES) return false;
    struct process *process = &current.process[current.processes++];
    *process = (struct process){.kind = COMPUTE, .reported = true, .bound = true, .until_ms = INFINITY};
    if (!parse_address(next_word(&rest), &process->address)) return false;
    for (char *key, *value; (key = next_word(&rest)) != NULL;) {
        if ((value = next_word(&rest)) == NULL || !process_key(process, key, value)) return false;
    }
    return true;
}

static bool rule_key(struct rule *rule, const char *key, const char *value) {
    if (strcmp(key, "call") == 0) return to_unsigned(value, &rule->call);
    if (strcmp(key, "from_ms") == 0) return to_real(value, &rule->from_ms);
    if (strcmp(key, "until_ms") == 0) return to_real(value, &rule->until_ms);
    if (strcmp(key, "field") == 0) return to_unsigned(value, &rule->field);
    return false;
}

enum effect { ERROR, DELAY, VALUE };

static bool read_rule(char *rest, enum effect effect) {
    if (current.rules == MAX_RULES) return false;
    struct rule *rule = &current.rule[current.rules++];
    *rule = (struct rule){.address = {-1, -1}, .from_ms = -INFINITY, .until_ms = INFINITY, .is_value = effect == VALUE};
    char *symbol = next_word(&rest), *value = next_word(&rest), *key = next_word(&rest);
    unsigned long long number;
    if (value == NULL || !to_text(symbol, rule->symbol) || !to_number(value, &number)) return false;
    if (effect == DELAY) rule->delay_ms = (unsigned long)number;
    if (effect == ERROR) rule->error = (int)number;
    if (effect == VALUE) rule->value = number;
    if (key != NULL && parse_address(key, &rule->address)) key = next_word(&rest);
    for (; key != NULL; key = next_word(&rest)) {
        if ((value = next_word(&rest)) == NULL || !rule_key(rule, key, value)) return false;
    }
    return true;
}

static bool read_error(char *rest) { return read_rule(rest, ERROR); }

static bool read_delay(char *rest) { return read_rule(rest, DELAY); }

static bool read_value(char *rest) { return read_rule(rest, VALUE); }

/* --- Quantities over time. --- */

static struct device *place_named(char **rest) {
    struct address address;
    if (!parse_address(next_word(rest), &address)) return NULL;
    for (int i = 0; i < current.devices; i++) {
        if (same_address(current.device[i].address, address)) return &current.device[i];
    }
    return NULL;
}

static bool add_point(struct curve *curve, double ms, double value) {
    if (current.points == MAX_POINTS) return false;
    if (curve->count++ == 0) curve->points = &current.point[current.points];
    current.point[current.points++] = (struct point){ms, value};
    return curve->count == 1 || ms > curve->points[curve->count - 2].ms;
}

static bool read_points(char *text, struct curve *curve) {
    if (text == NULL) return false;
    for (char *end; *text != '\0'; text = *end == ',' ? end + 1 : end) {
        double ms = strtod(text, &end);
        if (*end != ':') return false;
        double value = strtod(end + 1, &end);
        if ((*end != ',' && *end != '\0') || !add_point(curve, ms, value)) return false;
    }
    return curve->count > 0;
}

static bool next_real(char **rest, double *number) {
    char *word = next_word(rest);
    return word != NULL && to_real(word, number);
}

static bool read_curve(char *rest, enum quantity quantity) {
    struct device *device = place_named(&rest);
    char *shape = next_word(&rest);
    if (device == NULL || shape == NULL) return false;
    struct curve *curve = &device->curve[quantity];
    *curve = (struct curve){.shape = ABSENT};
    if (strcmp(shape, "constant") == 0) {
        double value;
        curve->shape = STEPS;
        return next_real(&rest, &value) && add_point(curve, 0, value);
    }
    if (strcmp(shape, "steps") == 0 || strcmp(shape, "trace") == 0) {
        curve->shape = strcmp(shape, "steps") == 0 ? STEPS : TRACE;
        return read_points(next_word(&rest), curve);
    }
    if (!next_real(&rest, &curve->low) || !next_real(&rest, &curve->high) || !next_real(&rest, &curve->period_ms) ||
        curve->period_ms <= 0)
        return false;
    if (strcmp(shape, "sawtooth") == 0) {
        curve->shape = SAWTOOTH;
        return true;
    }
    curve->shape = BURST;
    return strcmp(shape, "burst") == 0 && next_real(&rest, &curve->high_ms);
}

static bool read_power(char *rest) { return read_curve(rest, POWER); }
static bool read_temperature(char *rest) { return read_curve(rest, TEMPERATURE); }
static bool read_sm_clock(char *rest) { return read_curve(rest, SM_CLOCK); }
static bool read_memory_clock(char *rest) { return read_curve(rest, MEMORY_CLOCK); }
static bool read_gpu_use(char *rest) { return read_curve(rest, GPU_USE); }
static bool read_memory_use(char *rest) { return read_curve(rest, MEMORY_USE); }
static bool read_throttle(char *rest) { return read_curve(rest, THROTTLE); }
static bool read_module_power(char *rest) { return read_curve(rest, MODULE_POWER); }
static bool read_memory_power(char *rest) { return read_curve(rest, MEMORY_POWER); }
static bool read_violation_power(char *rest) { return read_curve(rest, VIOLATION_POWER); }
static bool read_violation_thermal(char *rest) { return read_curve(rest, VIOLATION_THERMAL); }
static bool read_violation_board(char *rest) { return read_curve(rest, VIOLATION_BOARD); }
static bool read_violation_reliability(char *rest) { return read_curve(rest, VIOLATION_RELIABILITY); }

/* --- Sensors and counters. --- */

static bool meter_key(struct device *device, const char *word, const char *key, const char *value) {
    if (strcmp(word, "sensor") == 0) {
        if (strcmp(key, "period_ms") == 0) return to_real(value, &device->sensor.period_ms);
        if (strcmp(key, "gain") == 0) return to_real(value, &device->sensor.gain);
        if (strcmp(key, "offset_w") == 0) return to_real(value, &device->sensor.offset_w);
        if (strcmp(key, "average_ms") == 0) return to_real(value, &device->sensor.average_ms);
        if (strcmp(key, "instant") == 0) return to_flag(value, &device->sensor.has_instant);
        if (strcmp(key, "wake_w") == 0) return to_real(value, &device->sensor.wake_w);
        if (strcmp(key, "wake_ms") == 0) return to_real(value, &device->sensor.wake_ms);
        return strcmp(key, "window_ms") == 0 && to_real(value, &device->sensor.window_ms);
    }
    if (strcmp(word, "counter") == 0) {
        if (strcmp(key, "supported") == 0) return to_flag(value, &device->counter.supported);
        if (strcmp(key, "period_ms") == 0) return to_real(value, &device->counter.period_ms);
        if (strcmp(key, "base_mj") == 0) return to_number(value, &device->counter.base_mj);
        if (strcmp(key, "gain") == 0) return to_real(value, &device->counter.gain);
        if (strcmp(key, "stall_ms") == 0) return to_real(value, &device->counter.stall_ms);
        if (strcmp(key, "resume_ms") == 0) return to_real(value, &device->counter.resume_ms);
        if (strcmp(key, "leap_ms") == 0) return to_real(value, &device->counter.leap_ms);
        if (strcmp(key, "leap_mj") == 0) return to_real(value, &device->counter.leap_mj);
        if (strcmp(key, "reset_ms") == 0) return to_real(value, &device->counter.reset_ms);
        return strcmp(key, "quantum_mj") == 0 && to_number(value, &device->counter.quantum_mj) &&
            device->counter.quantum_mj > 0;
    }
    device->limits.known = true;
    if (strcmp(key, "enforced_w") == 0) return to_mw(value, &device->limits.enforced_mw);
    if (strcmp(key, "current_w") == 0) return to_mw(value, &device->limits.current_mw);
    if (strcmp(key, "default_w") == 0) return to_mw(value, &device->limits.default_mw);
    if (strcmp(key, "later_ms") == 0) return to_real(value, &device->limits.later_ms);
    if (strcmp(key, "later_enforced_w") == 0) return to_mw(value, &device->limits.later_enforced_mw);
    if (strcmp(key, "min_w") == 0) return to_mw(value, &device->limits.min_mw);
    return strcmp(key, "max_w") == 0 && to_mw(value, &device->limits.max_mw);
}

static bool read_meter(char *rest, const char *word) {
    struct device *device = place_named(&rest);
    if (device == NULL) return false;
    for (char *key, *value; (key = next_word(&rest)) != NULL;) {
        if ((value = next_word(&rest)) == NULL || !meter_key(device, word, key, value)) return false;
    }
    return true;
}

static bool facts_key(struct facts *facts, const char *key, const char *value) {
    char dot;
    if (strcmp(key, "vbios") == 0) return to_text(value, facts->vbios);
    if (strcmp(key, "ecc") == 0) return facts->has_ecc = to_flag(value, &facts->ecc);
    if (strcmp(key, "persistence") == 0) return facts->has_persistence = to_flag(value, &facts->persistence);
    if (strcmp(key, "compute") == 0)
        return sscanf(value, "%u%c%u", &facts->compute_major, &dot, &facts->compute_minor) == 3 && dot == '.';
    if (strcmp(key, "sm_clock_max") == 0) return to_unsigned(value, &facts->sm_clock_max);
    if (strcmp(key, "memory_clock_max") == 0) return to_unsigned(value, &facts->memory_clock_max);
    if (strcmp(key, "sm_clock_application") == 0) return to_unsigned(value, &facts->sm_clock_application);
    if (strcmp(key, "pcie_generation") == 0) return to_unsigned(value, &facts->pcie_generation);
    if (strcmp(key, "pcie_width") == 0) return to_unsigned(value, &facts->pcie_width);
    if (strcmp(key, "nvlinks") == 0) return to_unsigned(value, &facts->nvlinks);
    return strcmp(key, "nvlinks_up") == 0 && to_unsigned(value, &facts->nvlinks_up);
}

static bool read_facts(char *rest) {
    struct device *device = place_named(&rest);
    if (device == NULL) return false;
    for (char *key, *value; (key = next_word(&rest)) != NULL;) {
        if ((value = next_word(&rest)) == NULL || !facts_key(&device->facts, key, value)) return false;
    }
    return true;
}

static bool read_sensor(char *rest) { return read_meter(rest, "sensor"); }
static bool read_counter(char *rest) { return read_meter(rest, "counter"); }
static bool read_limits(char *rest) { return read_meter(rest, "limits"); }

static bool read_origin(char *rest) {
    char *value = next_word(&rest);
    return value != NULL && to_number(value, &current.origin_ns);
}

static bool read_driver(char *rest) {
    char *version = next_word(&rest);
    if (version == NULL || !to_text(version, current.driver)) return false;
    char *key = next_word(&rest), *value = next_word(&rest);
    return key == NULL || (strcmp(key, "cuda") == 0 && value != NULL && to_unsigned(value, &current.cuda));
}

static const struct {
    const char *word;
    bool (*read)(char *rest);
} lines[] = {
    {"driver", read_driver}, {"device", read_device}, {"process", read_process},
    {"error", read_error},   {"delay", read_delay},   {"origin_ns", read_origin},
    {"power", read_power},   {"temperature", read_temperature},
    {"sm_clock", read_sm_clock},   {"memory_clock", read_memory_clock},
    {"gpu_use", read_gpu_use},     {"memory_use", read_memory_use},
    {"throttle", read_throttle},   {"sensor", read_sensor},
    {"counter", read_counter},     {"limits", read_limits},
    {"facts", read_facts},
    {"value", read_value},
    {"module_power", read_module_power},
    {"memory_power", read_memory_power},
    {"violation_power", read_violation_power},
    {"violation_thermal", read_violation_thermal},
    {"violation_board", read_violation_board},
    {"violation_reliability", read_violation_reliability},
};

static bool read_line(char *line) {
    char *rest = line, *word = next_word(&rest);
    if (word == NULL) return true;
    for (size_t i = 0; i < sizeof lines / sizeof *lines; i++) {
        if (strcmp(word, lines[i].word) == 0) return lines[i].read(rest);
    }
    return false;
}

const struct state *state_read(bool *exists) {
    /* Tests replace the file and never write into it, so a changed machine has another inode. */
    static _Thread_local struct stat known;
    struct stat found;
    const char *path = getenv("LEM_FAKE_NVML");
    if (path != NULL && stat(path, &found) == 0 && found.st_ino == known.st_ino && found.st_size == known.st_size &&
        found.st_mtim.tv_sec == known.st_mtim.tv_sec && found.st_mtim.tv_nsec == known.st_mtim.tv_nsec) {
        *exists = true;
        return &current;
    }
    FILE *file = path == NULL ? NULL : fopen(path, "r");
    *exists = file != NULL && fstat(fileno(file), &found) == 0;
    if (file == NULL) return NULL;
    memset(&known, 0, sizeof known);
    memset(&current, 0, sizeof current);
    char line[LINE], said[LINE];
    bool good = true;
    while (good && fgets(line, sizeof line, file) != NULL) {
        strcpy(said, line);
        good = read_line(line);
    }
    fclose(file);
    if (!good) fprintf(stderr, "%s: not understood: %s", path, said);
    if (good) known = found;
    return good ? &current : NULL;
}

bool same_address(struct address one, struct address other) {
    return one.gpu == other.gpu && one.instance == other.instance;
}

bool within(struct address inner, struct address outer) {
    return outer.gpu < 0 || (inner.gpu == outer.gpu && (outer.instance < 0 || inner.instance == outer.instance));
}

/* The memory of a zombie is free. */
static bool is_alive(unsigned pid) {
    char path[64], stat[512];
    snprintf(path, sizeof path, "/proc/%u/stat", pid);
    FILE *file = fopen(path, "r");
    if (file == NULL) return false;
    size_t length = fread(stat, 1, sizeof stat - 1, file);
    fclose(file);
    stat[length] = '\0';
    const char *name_end = strrchr(stat, ')');
    return name_end != NULL && name_end[1] == ' ' && name_end[2] != 'Z' && name_end[2] != 'X';
}

static unsigned long long now_ns(void) {
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (unsigned long long)now.tv_sec * 1000000000 + (unsigned long long)now.tv_nsec;
}

static unsigned long long now_ms(void) { return now_ns() / 1000000; }

double state_now_ms(const struct state *state) {
    return (double)(long long)(now_ns() - state->origin_ns) / 1e6;
}

/* Time when this process first saw the other one dead; its memory lingers from then on. */
static unsigned long long seen_dead_ms(unsigned pid) {
    static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
    static struct {
        unsigned pid;
        unsigned long long at_ms;
    } dead[MAX_PROCESSES];
    static int count;
    unsigned long long at_ms = now_ms();
    pthread_mutex_lock(&lock);
    int i = 0;
    while (i < count && dead[i].pid != pid) i++;
    if (i < count) {
        at_ms = dead[i].at_ms;
    } else if (count < MAX_PROCESSES) {
        dead[count].pid = pid;
        dead[count++].at_ms = at_ms;
    }
    pthread_mutex_unlock(&lock);
    return at_ms;
}

bool process_holds(const struct state *state, const struct process *process) {
    double ms = state_now_ms(state);
    if (ms < process->from_ms || ms >= process->until_ms) return false;
    if (!process->bound || is_alive(process->pid)) return true;
    return process->lingers_ms > 0 && now_ms() - seen_dead_ms(process->pid) < process->lingers_ms;
}

bool rule_is_due(const struct state *state, const struct rule *rule) {
    static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
    static struct {
        struct rule rule;
        unsigned calls;
    } seen[MAX_RULES];
    static int count;
    double ms = state_now_ms(state);
    if (ms < rule->from_ms || ms >= rule->until_ms) return false;
    if (rule->call == 0) return true;
    pthread_mutex_lock(&lock);
    int i = 0;
    while (i < count &&
           (strcmp(seen[i].rule.symbol, rule->symbol) != 0 || !same_address(seen[i].rule.address, rule->address) ||
            seen[i].rule.call != rule->call || seen[i].rule.field != rule->field ||
            seen[i].rule.is_value != rule->is_value))
        i++;
    if (i == count && count < MAX_RULES) seen[count++].rule = *rule;
    unsigned calls = i < count ? ++seen[i].calls : 0;
    pthread_mutex_unlock(&lock);
    return calls == rule->call;
}
