/* Values and integrals of the curves. */
#include "curve.h"

#include <math.h>

/* Index of the last point at or before the time; -1 without one. */
static int point_before(const struct curve *curve, double ms) {
    int i = curve->count - 1;
    while (i >= 0 && curve->points[i].ms > ms) i--;
    return i;
}

static double between(struct point left, struct point right, double ms) {
    return left.value + (right.value - left.value) * (ms - left.ms) / (right.ms - left.ms);
}

double curve_at(const struct curve *curve, double ms) {
    if (ms < 0) ms = 0;
    if (curve->shape == SAWTOOTH || curve->shape == BURST) {
        double phase = fmod(ms, curve->period_ms);
        if (curve->shape == BURST) return phase < curve->high_ms ? curve->high : curve->low;
        return curve->low + (curve->high - curve->low) * phase / curve->period_ms;
    }
    int i = point_before(curve, ms);
    if (i < 0) return curve->points[0].value;
    if (curve->shape == STEPS || i + 1 == curve->count) return curve->points[i].value;
    return between(curve->points[i], curve->points[i + 1], ms);
}

static double integral_of_period(const struct curve *curve, double phase) {
    if (curve->shape == BURST) {
        double high_ms = fmin(phase, curve->high_ms);
        return curve->high * high_ms + curve->low * (phase - high_ms);
    }
    return curve->low * phase + (curve->high - curve->low) * phase * phase / (2 * curve->period_ms);
}

double curve_integral(const struct curve *curve, double ms) {
    if (ms <= 0) return curve_at(curve, 0) * ms;
    if (curve->shape == SAWTOOTH || curve->shape == BURST) {
        double phase = fmod(ms, curve->period_ms);
        double whole = round((ms - phase) / curve->period_ms);
        return whole * integral_of_period(curve, curve->period_ms) + integral_of_period(curve, phase);
    }
    double sum = 0, from_ms = 0;
    for (int i = 0; i <= curve->count && from_ms < ms; i++) {
        double to_ms = i < curve->count ? fmin(curve->points[i].ms, ms) : ms;
        if (to_ms <= from_ms) continue;
        double end = curve->shape == STEPS || i == 0 || i == curve->count
            ? curve_at(curve, from_ms)
            : between(curve->points[i - 1], curve->points[i], to_ms);
        sum += (curve_at(curve, from_ms) + end) / 2 * (to_ms - from_ms);
        from_ms = to_ms;
    }
    return sum;
}

double curve_mean(const struct curve *curve, double begin_ms, double end_ms) {
    if (begin_ms >= end_ms) return curve_at(curve, end_ms);
    return (curve_integral(curve, end_ms) - curve_integral(curve, begin_ms)) / (end_ms - begin_ms);
}
