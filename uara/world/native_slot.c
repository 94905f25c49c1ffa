/* One slot of B networks in one pass: the arithmetic of uara/prediction.py (horizon "slot"),
 * uara/world/slot.py and uara/world/world.py, fused, for the worlds that native_slot.py admits.
 *
 * Shape legend: B networks, M devices, E servers, R requests of a device, T slots with arrivals.
 * Arrays are contiguous. Devices lie innermost and are padded to whole vectors of 16; a lane of
 * padding is a device without a request on server 0.
 */
#include <math.h>
#include <stdint.h>
#include <string.h>

#include "native_math.h"

#define LANES 16
#define WAYS 4 /* divides LANES */
#define LARGE 1e30f /* beyond it a time to the first token is infinite */

typedef struct {
    float uplink_noise;   /* W/Hz times the SNR gap */
    float downlink_noise; /* W/Hz times the SNR gap */
    float efficiency_max; /* bit/s/Hz */
    float rate_min;       /* bit/s */
    float drafts;         /* 1: devices may draft; 0: servers decode alone */
    float id_bytes;
    float row_bytes;        /* of probabilities per drafted token */
    float draft_base_bits;  /* of a draft's frame without its two fields */
    float prompt_base_bits; /* of an opening frame without its ids */
    float verdict_accepted_bits;
    float verdict_rejected_bits;
    float token_bits;
    float chunk_tokens;         /* prefill tokens per pass */
    float inverse_efficiency;   /* electrical over radiated power */
    float slot_s;
    float prior_tokens;         /* weight of the task's mean acceptance in the estimate */
    float infinity;             /* passed in: -ffast-math knows none */
    float iterations;           /* of the batching fixed point */
} Constants;

typedef struct {
    /* the slot's true gains: a table of (M, E) rows, and the row of each network (B,) */
    const float *gain;
    const int64_t *gain_row;
    /* decision, (B, M) */
    const int64_t *to_server;
    const float *bandwidth;
    const float *power;
    const int64_t *draft_length;
    /* progress */
    const int64_t *slot; /* (B,) */
    const int64_t *finished;
    const float *arrived;
    const uint8_t *active;
    const float *upload_bits;
    const float *kv;
    const float *tokens;
    const int64_t *server;
    const float *accepted;
    const float *tested;
    const float *ttft;
    /* current request, (B, M), zeros where there is none */
    const int64_t *task;
    const float *prompt;
    const float *attachment;
    const float *output;
    const float *acceptance;
    const float *arrival;
    /* request table, (B, M, R) */
    const double *table_arrival;
    const int64_t *table_task;
    const float *table_prompt;
    const float *table_attachment;
    const float *table_output;
    const float *table_acceptance;
    /* arrivals (B, T, M) and waiting seconds (B, T) of the slots */
    const float *arrivals;
    const float *waiting;
    /* tasks, (number of tasks,) */
    const float *task_acceptance;
    const float *answer_low;
    const float *answer_mean;
    const float *answer_high;
    /* devices, (B, M) */
    const float *draft_time;
    const float *draft_power;
    /* servers, (B, E) */
    const float *fixed;
    const float *row;
    const float *token;
    const float *cached;
    const float *server_power;
    const float *downlink_hz;
    const float *downlink_power;
    const float *rtt;
    const float *foreign_rows;
    const float *foreign_tokens;
    const float *capacity;
} Inputs;

typedef struct {
    float *state_columns;      /* (STATE_COLUMNS, B, M) */
    int64_t *state_counts;     /* (STATE_COUNTS, B, M) */
    float *outcome_columns;    /* (OUTCOME_COLUMNS, B, M) */
    uint8_t *flags;            /* (FLAGS, B, M) */
    int64_t *finished_task;    /* (B, M) */
    int64_t *slot;             /* (B,) */
    float *kv_free;            /* (B, E) */
    float *server_energy;      /* (B, E) */
    float *alive;              /* (B,) */
    uint8_t *drained;          /* (B,) */
} Outputs;

/* The same orders as in native_slot.py. */
enum {
    ARRIVED, UPLOAD_BITS, KV_TOKENS, TOKENS, ACCEPTED, TESTED, TTFT, PROMPT, ATTACHMENT, OUTPUT,
    ACCEPTANCE, ARRIVAL, AGE, WAITING, REMAINING, ESTIMATE, STATE_COLUMNS
};
enum { FINISHED_COUNT, SERVER, TASK, PHASE, STATE_COUNTS };
enum {
    COMMITTED, ENERGY, UPLINK_BITS, DOWNLINK_BITS, E2E, FINISHED_TTFT, FINISHED_TOKENS,
    OUTCOME_COLUMNS
};
enum { ACTIVE, HANDOVER, IS_FINISHED, FLAGS };
enum { UPLOADING = 1, PREFILLING = 2, DECODING = 3 };

/* Scratch of a network: rows over devices, then rows over servers. */
enum {
    /* inputs, padded */
    GAIN, HERTZ, WATT, GAMMA, WAS_ARRIVED, WAS_FINISHED, HAS, BITS, KV, SO_FAR, WAS_ACCEPTED,
    WAS_TESTED, WAS_TTFT, PROMPT_IN, PHOTO, LENGTH, ALPHA, SINCE, DRAFT_TIME, DRAFT_POWER, IS_MOVED,
    FRESH,
    /* prediction */
    MISSING, CONTEXT, UP, DRAFT_BITS, VERDICT_BITS, PER_ROUND, OWN, THINK, DRAFT_UPLINK, DECODES,
    QUEUES, ALONE, PASS, WAIT, PRESENCE, LOG_IDLE, WORK, ROUND, PREFILL_RATE,
    /* outcome and what follows */
    OUT, NEXT = OUT + OUTCOME_COLUMNS, FINISHES = NEXT + STATE_COLUMNS, SAVED, PREFILL_WORK, KEEP, GONE,
    IS_ACTIVE,
    DEVICE_ROWS
};
enum {
    USERS, QUEUE, BASE, SUM_LOG, SUM_WORK, IDLE_FREE, CHUNK, RATE, BUSY_SHARE, PARTIAL,
    SERVER_ROWS = PARTIAL + 2 * WAYS
};

static inline float field_bytes(float content) {
    return content + 2.0f + (content > 255.0f ? 1.0f : 0.0f) + (content > 65535.0f ? 2.0f : 0.0f);
}

static inline float at_least(float x, float low) { return x < low ? low : x; }
static inline float at_most(float x, float high) { return x > high ? high : x; }

/* Sum two rows over the devices of each server. Neighbouring devices add to sums of their own, so
 * that few additions wait for the one before. `partial` is scratch of 2 * WAYS * E floats. */
static void sum_by_server(const float *restrict first, const float *restrict second,
                          const int32_t *restrict server, int64_t width, int64_t E,
                          float *restrict partial, float *restrict first_sums,
                          float *restrict second_sums) {
    memset(partial, 0, (size_t)(2 * WAYS * E) * sizeof(float));
    for (int64_t m = 0; m < width; m += WAYS)
        for (int way = 0; way < WAYS; way++) {
            float *restrict at = partial + 2 * (WAYS * (int64_t)server[m + way] + way);
            at[0] += first[m + way];
            at[1] += second[m + way];
        }
    for (int64_t e = 0; e < E; e++) {
        const float *restrict at = partial + 2 * WAYS * e;
        float one = 0.0f, two = 0.0f;
        for (int way = 0; way < WAYS; way++) {
            one += at[2 * way];
            two += at[2 * way + 1];
        }
        first_sums[e] = one;
        second_sums[e] = two;
    }
}

typedef struct {
    const Inputs *in;
    const Constants *c;
    int64_t b, M, E, R, T, width;
    float *devices;   /* (DEVICE_ROWS, width) */
    float *servers;   /* (SERVER_ROWS, E) */
    int32_t *chosen;  /* (width,) server of the decision */
    int32_t *kind;    /* (width,) task */
} Network;

#define DEVICE(name) (n->devices + (name) * n->width)
#define OF_SERVER(name) (n->servers + (name) * n->E)

static void load_column(const Network *n, int which, const float *from, float padding) {
    float *to = DEVICE(which);
    memcpy(to, from + n->b * n->M, (size_t)n->M * sizeof(float));
    for (int64_t m = n->M; m < n->width; m++) to[m] = padding;
}

static void load(const Network *n) {
    const Inputs *in = n->in;
    const int64_t M = n->M, first = n->b * M;
    load_column(n, HERTZ, in->bandwidth, 1.0f);
    load_column(n, WATT, in->power, 0.0f);
    load_column(n, WAS_ARRIVED, in->arrived, 0.0f);
    load_column(n, BITS, in->upload_bits, 0.0f);
    load_column(n, KV, in->kv, 0.0f);
    load_column(n, SO_FAR, in->tokens, 0.0f);
    load_column(n, WAS_ACCEPTED, in->accepted, 0.0f);
    load_column(n, WAS_TESTED, in->tested, 0.0f);
    load_column(n, WAS_TTFT, in->ttft, 0.0f);
    load_column(n, PROMPT_IN, in->prompt, 0.0f);
    load_column(n, PHOTO, in->attachment, 0.0f);
    load_column(n, LENGTH, in->output, 0.0f);
    load_column(n, ALPHA, in->acceptance, 0.0f);
    load_column(n, SINCE, in->arrival, 0.0f);
    load_column(n, DRAFT_TIME, in->draft_time, 0.0f);
    load_column(n, DRAFT_POWER, in->draft_power, 0.0f);
    float *restrict gain = DEVICE(GAIN), *restrict gamma = DEVICE(GAMMA);
    float *restrict finished = DEVICE(WAS_FINISHED), *restrict has = DEVICE(HAS);
    float *restrict moved = DEVICE(IS_MOVED), *restrict arrivals = DEVICE(FRESH);
    const float *table = in->gain + in->gain_row[n->b] * M * n->E;
    const int64_t slot = in->slot[n->b];
    const float *counts = slot < n->T ? in->arrivals + (n->b * n->T + slot) * M : 0;
    for (int64_t m = 0; m < n->width; m++) {
        n->chosen[m] = 0;
        gain[m] = 1e-12f;
        gamma[m] = finished[m] = has[m] = moved[m] = arrivals[m] = 0.0f;
    }
    for (int64_t m = 0; m < M; m++) {
        const int64_t server = in->to_server[first + m];
        n->chosen[m] = (int32_t)server;
        gain[m] = table[m * n->E + server];
        gamma[m] = (float)in->draft_length[first + m] * n->c->drafts;
        finished[m] = (float)in->finished[first + m];
        has[m] = (float)in->active[first + m];
        moved[m] = server != in->server[first + m] ? has[m] : 0.0f;
    }
    if (counts) memcpy(arrivals, counts, (size_t)M * sizeof(float));
}

/* Caches, payloads, rates and who queues; sums of servers are complete when it returns. */
static void find_work(const Network *n) {
    const Inputs *in = n->in;
    const Constants *c = n->c;
    const int64_t width = n->width, s0 = n->b * n->E;
    const int32_t *restrict server = n->chosen;
    const float *restrict has = DEVICE(HAS), *restrict bits = DEVICE(BITS);
    const float *restrict prompt = DEVICE(PROMPT_IN), *restrict so_far = DEVICE(SO_FAR);
    const float *restrict kv = DEVICE(KV), *restrict moved = DEVICE(IS_MOVED);
    const float *restrict alpha = DEVICE(ALPHA), *restrict gamma = DEVICE(GAMMA);
    const float *restrict gain = DEVICE(GAIN), *restrict hertz = DEVICE(HERTZ);
    const float *restrict watt = DEVICE(WATT), *restrict draft_time = DEVICE(DRAFT_TIME);
    const float *restrict row = in->row + s0, *restrict token = in->token + s0;
    const float *restrict cached = in->cached + s0, *restrict rtt = in->rtt + s0;
    const float *restrict down_hz = in->downlink_hz + s0, *restrict down_w = in->downlink_power + s0;
    float *restrict missing = DEVICE(MISSING), *restrict context = DEVICE(CONTEXT);
    float *restrict up = DEVICE(UP), *restrict draft_bits = DEVICE(DRAFT_BITS);
    float *restrict verdict_bits = DEVICE(VERDICT_BITS), *restrict per_round = DEVICE(PER_ROUND);
    float *restrict own = DEVICE(OWN), *restrict think = DEVICE(THINK);
    float *restrict uplink = DEVICE(DRAFT_UPLINK), *restrict decodes = DEVICE(DECODES);
    float *restrict queues = DEVICE(QUEUES);
    float *restrict users = OF_SERVER(USERS);

#pragma omp simd
    for (int64_t m = 0; m < width; m++) {
        context[m] = prompt[m] + so_far[m];
        float lacking = context[m] - (moved[m] > 0.0f ? 0.0f : kv[m]);
        lacking = at_least(lacking, 0.0f);
        missing[m] = lacking;
        const float sent = bits[m] <= 0.0f ? has[m] : 0.0f;
        decodes[m] = lacking <= 0.0f ? sent : 0.0f;
        queues[m] = lacking > 0.0f ? sent : 0.0f;
    }
    sum_by_server(has, queues, server, width, n->E, OF_SERVER(PARTIAL), users, OF_SERVER(QUEUE));
#pragma omp simd
    for (int64_t m = 0; m < width; m++) {
        const int32_t s = server[m];
        const float g = gamma[m], a = alpha[m];
        const float survives = exp_of(g * log_of(at_least(a, 1e-30f)));
        const float drafted = g > 0.0f ? 1.0f : 0.0f;
        const float geometric =
            a > 1.0f - 1e-5f ? g + 1.0f : (1.0f - survives * a) / at_least(1.0f - a, 1e-6f);
        per_round[m] = drafted > 0.0f ? at_least(geometric, 1e-6f) : 1.0f;
        const float rejection = c->verdict_rejected_bits - c->verdict_accepted_bits;
        verdict_bits[m] = drafted > 0.0f
                              ? c->verdict_accepted_bits + rejection * (1.0f - survives)
                              : c->token_bits;
        const float fields = field_bytes(g * c->id_bytes) + field_bytes(g * c->row_bytes);
        draft_bits[m] = drafted * (c->draft_base_bits + 8.0f * fields);

        float up_efficiency =
            log1p_of(gain[m] * watt[m] / (c->uplink_noise * at_least(hertz[m], 1e-3f))) * 1.44269504f;
        up_efficiency = at_most(up_efficiency, c->efficiency_max);
        up[m] = at_least(hertz[m] * up_efficiency, c->rate_min);
        const float share = 1.0f / at_least(users[s], 1.0f), hz = down_hz[s] * share;
        float down_efficiency =
            log1p_of(gain[m] * (down_w[s] * share) / (c->downlink_noise * at_least(hz, 1e-3f))) *
            1.44269504f;
        down_efficiency = at_most(down_efficiency, c->efficiency_max);
        const float down = at_least(hz * down_efficiency, c->rate_min);
        uplink[m] = draft_bits[m] / up[m];
        think[m] = drafted * (g * draft_time[m] + uplink[m] + verdict_bits[m] / down + rtt[s]);
        own[m] = row[s] + (g + 1.0f) * token[s] + context[m] * cached[s];
    }
}

/* The damped fixed point of uara/serving/batching.py, and what it makes of rounds and prefills. */
static void solve_batching(const Network *n) {
    const Inputs *in = n->in;
    const Constants *c = n->c;
    const int64_t width = n->width, E = n->E, s0 = n->b * E;
    const int32_t *restrict server = n->chosen;
    const float *restrict think = DEVICE(THINK), *restrict decodes = DEVICE(DECODES);
    const float *restrict queues = DEVICE(QUEUES);
    float *restrict own = DEVICE(OWN), *restrict alone = DEVICE(ALONE);
    float *restrict pass = DEVICE(PASS), *restrict wait = DEVICE(WAIT);
    float *restrict presence = DEVICE(PRESENCE), *restrict log_idle = DEVICE(LOG_IDLE);
    float *restrict work = DEVICE(WORK), *restrict round = DEVICE(ROUND);
    float *restrict rate = DEVICE(PREFILL_RATE);
    float *restrict queue = OF_SERVER(QUEUE), *restrict base = OF_SERVER(BASE);
    float *restrict sum_log = OF_SERVER(SUM_LOG), *restrict sum_work = OF_SERVER(SUM_WORK);
    float *restrict free_idle = OF_SERVER(IDLE_FREE), *restrict chunk = OF_SERVER(CHUNK);
    float *restrict partial = OF_SERVER(PARTIAL);
    float *restrict server_rate = OF_SERVER(RATE), *restrict busy_share = OF_SERVER(BUSY_SHARE);

    for (int64_t e = 0; e < E; e++) {
        const int64_t s = s0 + e;
        queue[e] += in->foreign_tokens[s] > 0.0f ? 1.0f : 0.0f;
        chunk[e] = c->chunk_tokens * in->token[s];
        free_idle[e] = in->foreign_rows[s] <= 0.0f ? 1.0f : 0.0f;
        base[e] = in->fixed[s] + (queue[e] > 0.0f ? chunk[e] : 0.0f) +
                  in->foreign_rows[s] * (in->row[s] + in->token[s]);
    }
#pragma omp simd
    for (int64_t m = 0; m < width; m++) {
        const int32_t s = server[m];
        own[m] -= queues[m] > 0.0f && queue[s] <= 1.0f ? chunk[s] : 0.0f;
        alone[m] = pass[m] = base[s] + own[m];
        wait[m] = 0.0f;
        presence[m] = decodes[m] * pass[m] / (think[m] + pass[m]);
        log_idle[m] = log_of(1.0f - at_most(presence[m], 1.0f - 1e-6f));
        work[m] = presence[m] * own[m];
    }
    for (int turn = 0; turn < (int)c->iterations; turn++) {
        sum_by_server(log_idle, work, server, width, E, partial, sum_log, sum_work);
#pragma omp simd
        for (int64_t m = 0; m < width; m++) {
            const int32_t s = server[m];
            const float busy = 1.0f - free_idle[s] * exp_of(sum_log[s] - log_idle[m]);
            const float pass_s = alone[m] + (sum_work[s] - work[m]);
            const float z = think[m] / pass_s + 0.75f;
            const float residual = 0.25f + fabsf(z - truncf(z) - 0.5f);
            const float waits = think[m] > 0.0f ? 1.0f : 0.0f;
            const float wait_s = 0.5f * (wait[m] + waits * busy * residual * pass_s);
            const float cycle = think[m] + wait_s + pass_s;
            pass[m] = pass_s;
            wait[m] = wait_s;
            round[m] = cycle;
            presence[m] = decodes[m] * pass_s / cycle;
            log_idle[m] = log_of(1.0f - at_most(presence[m], 1.0f - 1e-6f));
            work[m] = presence[m] * own[m];
        }
    }
    sum_by_server(log_idle, work, server, width, E, partial, sum_log, sum_work);
    for (int64_t e = 0; e < E; e++) {
        busy_share[e] = 1.0f - free_idle[e] * exp_of(sum_log[e]);
        server_rate[e] = c->chunk_tokens / (chunk[e] + busy_share[e] * in->fixed[s0 + e]);
    }
#pragma omp simd
    for (int64_t m = 0; m < width; m++) {
        const int32_t s = server[m];
        rate[m] = server_rate[s] / (queue[s] - queues[m] + 1.0f);
    }
}

/* Upload, prefill, decoding: outcomes, and the progress of requests that go on. */
static void play(const Network *n) {
    const Constants *c = n->c;
    const int64_t width = n->width;
    const float slot_s = c->slot_s, time_s = (float)n->in->slot[n->b] * slot_s;
    const int32_t *restrict server = n->chosen;
    const float *restrict token = n->in->token + n->b * n->E;
    const float *restrict has = DEVICE(HAS), *restrict bits = DEVICE(BITS);
    const float *restrict up = DEVICE(UP), *restrict missing = DEVICE(MISSING);
    const float *restrict rate = DEVICE(PREFILL_RATE), *restrict round = DEVICE(ROUND);
    const float *restrict per_round = DEVICE(PER_ROUND), *restrict length = DEVICE(LENGTH);
    const float *restrict so_far = DEVICE(SO_FAR), *restrict since = DEVICE(SINCE);
    const float *restrict old_ttft = DEVICE(WAS_TTFT), *restrict draft_bits = DEVICE(DRAFT_BITS);
    const float *restrict verdict_bits = DEVICE(VERDICT_BITS), *restrict gamma = DEVICE(GAMMA);
    const float *restrict uplink = DEVICE(DRAFT_UPLINK), *restrict watt = DEVICE(WATT);
    const float *restrict draft_time = DEVICE(DRAFT_TIME), *restrict alpha = DEVICE(ALPHA);
    const float *restrict draft_power = DEVICE(DRAFT_POWER), *restrict context = DEVICE(CONTEXT);
    const float *restrict accepted = DEVICE(WAS_ACCEPTED), *restrict tested = DEVICE(WAS_TESTED);
    float *restrict committed = DEVICE(OUT + COMMITTED), *restrict energy = DEVICE(OUT + ENERGY);
    float *restrict up_bits = DEVICE(OUT + UPLINK_BITS), *restrict e2e = DEVICE(OUT + E2E);
    float *restrict down_bits = DEVICE(OUT + DOWNLINK_BITS);
    float *restrict out_ttft = DEVICE(OUT + FINISHED_TTFT);
    float *restrict out_tokens = DEVICE(OUT + FINISHED_TOKENS);
    float *restrict finishes = DEVICE(FINISHES), *restrict saved = DEVICE(SAVED);
    float *restrict prefill_work = DEVICE(PREFILL_WORK), *restrict keep = DEVICE(KEEP);
    float *restrict next_bits = DEVICE(NEXT + UPLOAD_BITS);
    float *restrict next_kv = DEVICE(NEXT + KV_TOKENS), *restrict next = DEVICE(NEXT + TOKENS);
    float *restrict next_accepted = DEVICE(NEXT + ACCEPTED);
    float *restrict next_tested = DEVICE(NEXT + TESTED), *restrict next_ttft = DEVICE(NEXT + TTFT);
    const float *restrict prompt = DEVICE(PROMPT_IN);
#pragma omp simd
    for (int64_t m = 0; m < width; m++) {
        const float is_active = has[m];
        const float upload_s = bits[m] / up[m];
        const float time_up = at_most(upload_s, slot_s) * is_active;
        float left = slot_s * is_active - time_up;
        const float time_prefill = at_most(missing[m] / rate[m], left);
        left -= time_prefill;
        const float tpot = round[m] / per_round[m], output_left = length[m] - so_far[m];
        const float decode_s = output_left * tpot, time_decode = at_most(decode_s, left);
        const float ends = decode_s <= left ? is_active : 0.0f;
        const float done = ends > 0.0f ? output_left : time_decode / tpot * is_active;
        const float age = (time_s - since[m]) * is_active + time_up + time_prefill;
        const float before = old_ttft[m];
        const float begins = before > LARGE && left > 0.0f ? is_active : 0.0f;
        const float ttft = begins > 0.0f ? age + round[m] : before;
        const float rounds = time_decode / round[m], end_s = (age + time_decode) * ends;
        const float airtime = time_up + rounds * uplink[m];
        const float drafting = rounds * gamma[m] * draft_time[m];
        const float read = time_prefill * rate[m];

        committed[m] = done;
        energy[m] = airtime * watt[m] * c->inverse_efficiency + drafting * draft_power[m];
        up_bits[m] = time_up * up[m] + rounds * draft_bits[m];
        down_bits[m] = rounds * verdict_bits[m];
        e2e[m] = end_s;
        out_ttft[m] = ends > 0.0f ? at_most(ttft, end_s) : 0.0f;
        out_tokens[m] = length[m] * ends;
        finishes[m] = ends;
        saved[m] = (slot_s - (time_up + time_prefill + time_decode)) * ends;
        prefill_work[m] = read * token[server[m]];

        const float goes_on = is_active - ends;
        float rest = at_least(bits[m] - time_up * up[m], 0.0f);
        rest = upload_s <= slot_s ? 0.0f : rest;
        const float gained = gamma[m] > 0.0f ? done / per_round[m] * (per_round[m] - 1.0f) : 0.0f;
        keep[m] = goes_on;
        next_bits[m] = rest * goes_on;
        next[m] = (so_far[m] + done) * goes_on;
        next_accepted[m] = (accepted[m] + gained) * goes_on;
        next_tested[m] = (tested[m] + gained / at_least(alpha[m], 1e-6f)) * goes_on;
        next_ttft[m] = goes_on > 0.0f ? ttft : c->infinity;
        const float is_prefilled = read >= missing[m] * (1.0f - 1e-6f) ? 1.0f : 0.0f;
        /* Where it is all there, the next loop writes the context: read back from memory, so that
         * it is the same sum, to the last bit, that asks later whether anything is missing. */
        const float partial = context[m] - missing[m] + read;
        next_kv[m] = is_prefilled > 0.0f && rest <= 0.0f ? -1.0f : partial * goes_on;
    }
    for (int64_t m = 0; m < width; m++)
        next_kv[m] = next_kv[m] < -0.5f ? (prompt[m] + next[m]) * keep[m] : next_kv[m];
}

/* Admit the requests that start and describe all of them as controllers know them. */
static void admit(const Network *n, const Outputs *out, int64_t B) {
    const Inputs *in = n->in;
    const Constants *c = n->c;
    const int64_t M = n->M, first = n->b * M, width = n->width;
    const float time_s = (float)(in->slot[n->b] + 1) * c->slot_s;
    const float *restrict keep = DEVICE(KEEP), *restrict ends = DEVICE(FINISHES);
    const float *restrict was_finished = DEVICE(WAS_FINISHED), *restrict fresh = DEVICE(FRESH);
    const float *restrict was_arrived = DEVICE(WAS_ARRIVED), *restrict was_prompt = DEVICE(PROMPT_IN);
    const float *restrict was_length = DEVICE(LENGTH), *restrict was_alpha = DEVICE(ALPHA);
    const float *restrict was_since = DEVICE(SINCE), *restrict was_photo = DEVICE(PHOTO);
    float *restrict next = DEVICE(NEXT), *restrict arrived = next + ARRIVED * width;
    float *restrict bits = next + UPLOAD_BITS * width, *restrict kv = next + KV_TOKENS * width;
    float *restrict tokens = next + TOKENS * width, *restrict accepted = next + ACCEPTED * width;
    float *restrict tested = next + TESTED * width, *restrict prompt = next + PROMPT * width;
    float *restrict photo = next + ATTACHMENT * width;
    float *restrict length = next + OUTPUT * width, *restrict alpha = next + ACCEPTANCE * width;
    float *restrict since = next + ARRIVAL * width, *restrict age = next + AGE * width;
    float *restrict waiting = next + WAITING * width, *restrict left = next + REMAINING * width;
    float *restrict estimate = next + ESTIMATE * width;
    float *restrict active = DEVICE(IS_ACTIVE), *restrict finished = DEVICE(GONE);
    int32_t *restrict kind = n->kind;
    const int64_t *task = in->task + first;
    int64_t *next_task = out->state_counts + TASK * B * M + first;
    int64_t *next_server = out->state_counts + SERVER * B * M + first;
    int64_t *phase = out->state_counts + PHASE * B * M + first;
    int64_t *count = out->state_counts + FINISHED_COUNT * B * M + first;
    uint8_t *flag = out->flags + ACTIVE * B * M + first;

    for (int64_t m = 0; m < M; m++) out->finished_task[first + m] = ends[m] > 0.0f ? task[m] : 0;
    for (int64_t m = 0; m < width; m++) {
        finished[m] = was_finished[m] + ends[m];
        arrived[m] = was_arrived[m] + fresh[m];
        active[m] = keep[m] > 0.0f || arrived[m] > finished[m] ? 1.0f : 0.0f;
        prompt[m] = was_prompt[m] * keep[m];
        photo[m] = was_photo[m] * keep[m];
        length[m] = was_length[m] * keep[m];
        alpha[m] = was_alpha[m] * keep[m];
        since[m] = was_since[m] * keep[m];
    }
    for (int64_t m = M; m < width; m++) kind[m] = 0;
    for (int64_t m = 0; m < M; m++) {
        kind[m] = keep[m] > 0.0f ? (int32_t)task[m] : 0;
        if (keep[m] > 0.0f || active[m] <= 0.0f) continue;
        const int64_t number = (int64_t)finished[m] < n->R - 1 ? (int64_t)finished[m] : n->R - 1;
        const int64_t i = (first + m) * n->R + number;
        kind[m] = (int32_t)in->table_task[i];
        prompt[m] = in->table_prompt[i];
        photo[m] = in->table_attachment[i];
        length[m] = in->table_output[i];
        alpha[m] = in->table_acceptance[i];
        since[m] = (float)in->table_arrival[i];
        bits[m] = c->prompt_base_bits + 8.0f * field_bytes(prompt[m] * c->id_bytes) + photo[m];
    }
    const float *restrict low = in->answer_low, *restrict mean = in->answer_mean;
    const float *restrict high = in->answer_high, *restrict known = in->task_acceptance;
#pragma omp simd
    for (int64_t m = 0; m < width; m++) {
        const int32_t k = kind[m];
        const float scale = at_least(mean[k] - low[k], 1e-6f);
        const float past = at_least(tokens[m] - low[k], 0.0f);
        const float tail =
            scale * (1.0f - exp_of(-at_least(high[k] - low[k] - past, 0.0f) / scale));
        left[m] = at_least(at_least(low[k] - tokens[m], 0.0f) + tail, 1.0f);
        estimate[m] = (c->prior_tokens * known[k] + accepted[m]) / (c->prior_tokens + tested[m]);
        age[m] = (time_s - since[m]) * active[m];
        waiting[m] = arrived[m] - finished[m] - active[m];
    }
    for (int64_t m = 0; m < M; m++) {
        const int is_sent = bits[m] <= 0.0f, is_read = kv[m] >= prompt[m] + tokens[m];
        phase[m] = active[m] > 0.0f ? UPLOADING + is_sent + (is_sent & is_read) : 0;
        flag[m] = active[m] > 0.0f;
        count[m] = (int64_t)finished[m];
        next_task[m] = kind[m];
        next_server[m] = keep[m] > 0.0f ? n->chosen[m] : -1;
    }
}

/* Sums over devices and servers, and everything that leaves. */
static void store(const Network *n, const Outputs *out, int64_t B) {
    const Inputs *in = n->in;
    const Constants *c = n->c;
    const int64_t M = n->M, E = n->E, first = n->b * M, s0 = n->b * E, slot = in->slot[n->b];
    const size_t bytes = (size_t)M * sizeof(float);
    for (int k = 0; k < STATE_COLUMNS; k++)
        memcpy(out->state_columns + k * B * M + first, DEVICE(NEXT + k), bytes);
    for (int k = 0; k < OUTCOME_COLUMNS; k++)
        memcpy(out->outcome_columns + k * B * M + first, DEVICE(OUT + k), bytes);
    const float *restrict moved = DEVICE(IS_MOVED), *restrict kv = DEVICE(KV);
    uint8_t *handover = out->flags + HANDOVER * B * M + first;
    for (int64_t m = 0; m < M; m++) handover[m] = moved[m] > 0.0f && kv[m] > 0.0f;
    /* A request that started holds nothing yet, so that its new server does not matter. */
    float *restrict held = OF_SERVER(SUM_LOG), *restrict work = OF_SERVER(SUM_WORK);
    sum_by_server(DEVICE(NEXT + KV_TOKENS), DEVICE(PREFILL_WORK), n->chosen, n->width, E,
                  OF_SERVER(PARTIAL), held, work);
    const float *restrict busy = OF_SERVER(BUSY_SHARE);
    for (int64_t e = 0; e < E; e++) {
        out->kv_free[s0 + e] = in->capacity[s0 + e] - held[e];
        out->server_energy[s0 + e] =
            at_most(busy[e] * c->slot_s + work[e], c->slot_s) * in->server_power[s0 + e];
    }
    out->slot[n->b] = slot + 1;
}

/* The integral of present requests over the slot. */
static float alive_s(const Network *n) {
    const float *restrict arrived = DEVICE(WAS_ARRIVED), *restrict finished = DEVICE(WAS_FINISHED);
    const float *restrict saved = DEVICE(SAVED);
    const int64_t slot = n->in->slot[n->b];
    float present = 0.0f, gone = 0.0f;
#pragma omp simd reduction(+ : present, gone)
    for (int64_t m = 0; m < n->width; m++) {
        present += arrived[m] - finished[m];
        gone += saved[m];
    }
    return present * n->c->slot_s - gone + (slot < n->T ? n->in->waiting[n->b * n->T + slot] : 0.0f);
}

/* Scratch that play_slot needs as `work`. */
int64_t scratch_floats(int64_t M, int64_t E) {
    const int64_t width = (M + LANES - 1) / LANES * LANES;
    return (DEVICE_ROWS + 2) * width + SERVER_ROWS * E;
}

void play_slot(const Inputs *in, const Constants *c, int64_t B, int64_t M, int64_t E, int64_t R,
               int64_t T, const Outputs *out, float *work) {
    const int64_t width = (M + LANES - 1) / LANES * LANES;
    float *servers = work + DEVICE_ROWS * width;
    int32_t *chosen = (int32_t *)(servers + SERVER_ROWS * E);
    for (int64_t b = 0; b < B; b++) {
        const Network one = {in, c, b, M, E, R, T, width, work, servers, chosen, chosen + width};
        const Network *n = &one;
        load(n);
        find_work(n);
        solve_batching(n);
        play(n);
        out->alive[b] = alive_s(n);
        uint8_t *flag = out->flags + IS_FINISHED * B * M + b * M;
        for (int64_t m = 0; m < M; m++) flag[m] = DEVICE(FINISHES)[m] > 0.0f;
        admit(n, out, B);
        float open = 0.0f;
        const float *restrict arrived = DEVICE(NEXT + ARRIVED), *restrict gone = DEVICE(GONE);
        for (int64_t m = 0; m < M; m++) open += arrived[m] > gone[m] ? 1.0f : 0.0f;
        out->drained[b] = in->slot[b] + 1 >= T && open == 0.0f;
        store(n, out, B);
    }
}
