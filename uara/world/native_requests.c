/* The requests of episodes: the arithmetic of uara/world/requests.py and uara/world/streams.py, for
 * the mixes that native_requests.py admits. Nothing is drawn beyond the last arrival.
 *
 * Shape legend: B networks, M devices, R requests of a device, K tasks. Arrays are contiguous.
 */
#include <math.h>
#include <stdint.h>

typedef struct {
    double rate;      /* arrivals per second of a device */
    double horizon_s; /* no request arrives later */
    double never;     /* passed in: -ffast-math knows no infinity */
} Constants;

/* (K,) all; the same order as in native_requests.py. */
typedef struct {
    const double *cdf; /* of the tasks' weights */
    const float *acceptance;
    const float *half_width; /* of the acceptance, around its mean */
    const float *attachment;
    const float *prompt_low;
    const float *prompt_mean;
    const float *prompt_high;
    const float *output_low;
    const float *output_mean;
    const float *output_high;
} Tasks;

/* (B, M, R) all; the same order as in native_requests.py. */
typedef struct {
    double *arrival;
    int64_t *task;
    float *prompt;
    float *attachment;
    float *output;
    float *acceptance;
} Table;

/* uara/world/streams.py: Purpose. */
enum { FOR_ARRIVAL = 1, FOR_TASK, FOR_PROMPT, FOR_OUTPUT, FOR_ACCEPTANCE };

static const uint64_t GOLDEN = 0x9E3779B97F4A7C15u;

/* The finaliser of SplitMix64 (Steele et al., OOPSLA 2014). */
static inline uint64_t mix(uint64_t value) {
    value = (value ^ (value >> 30)) * 0xBF58476D1CE4E5B9u;
    value = (value ^ (value >> 27)) * 0x94D049BB133111EBu;
    return value ^ (value >> 31);
}

static inline uint64_t with_key(uint64_t state, uint64_t key) {
    return mix(state + GOLDEN + mix(key + GOLDEN));
}

static inline double uniform(uint64_t state, uint64_t purpose) {
    return ((double)(int64_t)(with_key(state, purpose) >> 11) + 0.5) * 0x1p-53;
}

/* Minimum plus an exponential part, whole, cut at the maximum. */
static inline float draw_length(double draw, float low, float mean, float high) {
    const double length = rint((double)low - log(draw) * (double)(mean - low));
    return length < (double)high ? (float)length : high;
}

static void draw_request(const Tasks *tasks, int64_t K, uint64_t state, const Table *table,
                         int64_t i) {
    const double pick = uniform(state, FOR_TASK);
    int64_t k = 0;
    while (k < K - 1 && tasks->cdf[k] < pick) k++;
    const double swing = 2.0 * uniform(state, FOR_ACCEPTANCE) - 1.0;
    table->task[i] = k;
    table->attachment[i] = tasks->attachment[k];
    table->acceptance[i] =
        (float)((double)tasks->acceptance[k] + (double)tasks->half_width[k] * swing);
    table->prompt[i] = draw_length(uniform(state, FOR_PROMPT), tasks->prompt_low[k],
                                   tasks->prompt_mean[k], tasks->prompt_high[k]);
    table->output[i] = draw_length(uniform(state, FOR_OUTPUT), tasks->output_low[k],
                                   tasks->output_mean[k], tasks->output_high[k]);
}

void draw_requests(const int64_t *episode, const Constants *c, const Tasks *tasks, int64_t B,
                   int64_t M, int64_t R, int64_t K, const Table *table) {
    for (int64_t b = 0; b < B; b++) {
        const uint64_t network = with_key(0, (uint64_t)episode[b]);
        for (int64_t m = 0; m < M; m++) {
            const uint64_t device = with_key(network, (uint64_t)m);
            const int64_t first = (b * M + m) * R;
            double arrival = 0.0;
            for (int64_t r = 0; r < R; r++) {
                const int64_t i = first + r;
                if (arrival < c->horizon_s) {
                    const uint64_t state = with_key(device, (uint64_t)r);
                    arrival -= log(uniform(state, FOR_ARRIVAL)) / c->rate;
                    if (arrival < c->horizon_s) {
                        table->arrival[i] = arrival;
                        draw_request(tasks, K, state, table, i);
                        continue;
                    }
                }
                table->arrival[i] = c->never;
                table->task[i] = 0;
                table->prompt[i] = table->attachment[i] = 0.0f;
                table->output[i] = table->acceptance[i] = 0.0f;
            }
        }
    }
}
