/* Reads the state file: one thing a line, first a word that says what, then where, then pairs of key and value. */
#include "state.h"

#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

enum { LINE = 1024 };

static _Thread_local struct state current;

/* The next word of a line, quotes taken off; NULL at its end. */
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

static bool to_flag(const char *value, bool *flag) {
    *flag = strcmp(value, "yes") == 0;
    return *flag || strcmp(value, "no") == 0;
}

static bool to_place(const char *value, struct place *place) {
    char dot;
    place->instance = -1;
    int parts = value == NULL ? 0 : sscanf(value, "%d%c%d", &place->gpu, &dot, &place->instance);
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
    if (strcmp(key, "mig") == 0) {
        device->has_mig = true;
        return to_flag(value, &device->mig_enabled);
    }
    return false;
}

static bool process_key(struct process *process, const char *key, const char *value) {
    unsigned long long number;
    if (strcmp(key, "pid") == 0) return to_unsigned(value, &process->pid);
    if (strcmp(key, "memory") == 0) return to_number(value, &process->memory);
    if (strcmp(key, "reported") == 0) return to_flag(value, &process->reported);
    if (strcmp(key, "bound") == 0) return to_flag(value, &process->bound);
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
    *device = (struct device){.mig_slots = 7};
    if (!to_place(next_word(&rest), &device->place)) return false;
    for (char *key, *value; (key = next_word(&rest)) != NULL;) {
        if ((value = next_word(&rest)) == NULL || !device_key(device, key, value)) return false;
    }
    return true;
}

static bool read_process(char *rest) {
    if (current.processes == MAX_PROCESSES) return false;
    struct process *process = &current.process[current.processes++];
    *process = (struct process){.kind = COMPUTE, .reported = true, .bound = true};
    if (!to_place(next_word(&rest), &process->place)) return false;
    for (char *key, *value; (key = next_word(&rest)) != NULL;) {
        if ((value = next_word(&rest)) == NULL || !process_key(process, key, value)) return false;
    }
    return true;
}

static bool read_rule(char *rest, bool is_delay) {
    if (current.rules == MAX_RULES) return false;
    struct rule *rule = &current.rule[current.rules++];
    *rule = (struct rule){.place = {-1, -1}};
    char *symbol = next_word(&rest), *value = next_word(&rest), *where = next_word(&rest);
    unsigned long long number;
    if (value == NULL || !to_text(symbol, rule->symbol) || !to_number(value, &number)) return false;
    if (is_delay) {
        rule->delay_ms = (unsigned long)number;
    } else {
        rule->error = (int)number;
    }
    return where == NULL || to_place(where, &rule->place);
}

static bool read_error(char *rest) { return read_rule(rest, false); }

static bool read_delay(char *rest) { return read_rule(rest, true); }

static bool read_driver(char *rest) {
    char *version = next_word(&rest);
    return version != NULL && to_text(version, current.driver);
}

static const struct {
    const char *word;
    bool (*read)(char *rest);
} lines[] = {
    {"driver", read_driver}, {"device", read_device}, {"process", read_process},
    {"error", read_error},   {"delay", read_delay},
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
    const char *path = getenv("LEM_FAKE_NVML");
    FILE *file = path == NULL ? NULL : fopen(path, "r");
    *exists = file != NULL;
    if (file == NULL) return NULL;
    memset(&current, 0, sizeof current);
    char line[LINE], said[LINE];
    bool good = true;
    while (good && fgets(line, sizeof line, file) != NULL) {
        strcpy(said, line);
        good = read_line(line);
    }
    fclose(file);
    if (!good) fprintf(stderr, "%s: not understood: %s", path, said);
    return good ? &current : NULL;
}

bool same_place(struct place one, struct place other) {
    return one.gpu == other.gpu && one.instance == other.instance;
}

bool within(struct place inner, struct place outer) {
    return outer.gpu < 0 || (inner.gpu == outer.gpu && (outer.instance < 0 || inner.instance == outer.instance));
}

/* A zombie's memory is free already. */
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

static unsigned long long now_ms(void) {
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (unsigned long long)now.tv_sec * 1000 + (unsigned long long)now.tv_nsec / 1000000;
}

/* When this process first saw that one dead; its memory lingers from then on. */
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

bool process_holds(const struct process *process) {
    if (!process->bound || is_alive(process->pid)) return true;
    return process->lingers_ms > 0 && now_ms() - seen_dead_ms(process->pid) < process->lingers_ms;
}
