/* Decisions from learned choices: the arithmetic of envs/action.py where all four are learned.
 *
 * Shape legend: B networks, M devices, E servers. Arrays are contiguous.
 */
#include <math.h>
#include <stdint.h>

#include "native_math.h"

typedef struct {
    /* action, (B, M) */
    const int64_t *server;
    const float *bandwidth;
    const float *power;
    const int64_t *draft_length;
    /* state */
    const float *gain;        /* (B, M, E) */
    const uint8_t *reachable; /* (B, M, E) */
    const int64_t *phase;     /* (B, M), 0: no request */
    const float *power_max;   /* (B, M) W */
    const float *band;        /* (B, E) Hz */
} Inputs;

typedef struct {
    /* (B, M) all */
    int64_t *server;
    float *bandwidth;
    float *power;
    int64_t *draft_length;
    uint8_t *illegal;
} Outputs;

static inline float unit(float x) {
    x = x < 0.0f ? 0.0f : x;
    return x > 1.0f ? 1.0f : x;
}

/* `total` is scratch of E floats. */
void decide(const Inputs *in, int64_t B, int64_t M, int64_t E, float weight_span, int64_t longest,
            const Outputs *out, float *total) {
    for (int64_t b = 0; b < B; b++) {
        const int64_t first = b * M;
        const int64_t *restrict phase = in->phase + first, *restrict length = in->draft_length + first;
        const float *restrict share = in->bandwidth + first, *restrict level = in->power + first;
        const float *restrict limit = in->power_max + first;
        int64_t *restrict server = out->server + first, *restrict drafts = out->draft_length + first;
        float *restrict hertz = out->bandwidth + first, *restrict watt = out->power + first;
        uint8_t *restrict illegal = out->illegal + first;
#pragma omp simd
        for (int64_t m = 0; m < M; m++) {
            const float weight = exp_of(weight_span * (2.0f * unit(share[m]) - 1.0f));
            hertz[m] = phase[m] != 0 ? weight : 0.0f;
            watt[m] = unit(level[m]) * limit[m];
            const int64_t asked = length[m] < 0 ? 0 : length[m];
            drafts[m] = asked > longest ? longest : asked;
        }
        for (int64_t e = 0; e < E; e++) total[e] = 0.0f;
        for (int64_t m = 0; m < M; m++) {
            const uint8_t *reachable = in->reachable + (first + m) * E;
            const float *gain = in->gain + (first + m) * E;
            int64_t chosen = in->server[first + m];
            const int is_legal = chosen >= 0 && chosen < E && reachable[chosen];
            if (!is_legal) {
                chosen = -1;
                for (int64_t e = 0; e < E; e++)
                    if (reachable[e] && (chosen < 0 || gain[e] > gain[chosen])) chosen = e;
            }
            server[m] = chosen;
            illegal[m] = !is_legal && phase[m] != 0;
            total[chosen] += hertz[m];
        }
        for (int64_t e = 0; e < E; e++)
            total[e] = in->band[b * E + e] / (total[e] > 1e-30f ? total[e] : 1e-30f);
        for (int64_t m = 0; m < M; m++) hertz[m] *= total[server[m]];
    }
}
