/* A quantity over time with its exact integral; curves.py is the same in Python. Times are in ms from the origin. */
#ifndef LEM_FAKE_NVML_CURVE_H
#define LEM_FAKE_NVML_CURVE_H

enum shape { ABSENT, STEPS, TRACE, SAWTOOTH, BURST };

struct point {
    double ms, value;
};

struct curve {
    enum shape shape;
    const struct point *points; /* STEPS, TRACE */
    int count;
    double low, high, period_ms, high_ms; /* SAWTOOTH, BURST */
};

/* Before the origin a curve has its first value. */
double curve_at(const struct curve *curve, double ms);
/* Integral from the origin; negative before it. */
double curve_integral(const struct curve *curve, double ms);
double curve_mean(const struct curve *curve, double begin_ms, double end_ms);

#endif
