/* Features of an observation in one pass: the arithmetic of envs/local_prediction.py and of
 * envs/observation.py, fused, for link adaptation "shannon", orthogonal bands and the serving modes
 * whose round is a sum of its parts or the forward pass alone.
 *
 * Shape legend: B networks, M devices, E servers. Arrays are float32 and contiguous unless said
 * otherwise. Devices lie innermost, so that one vector holds 16 of them.
 */
#include <math.h>
#include <stdint.h>

#include "native_math.h"

#define LANES 16
#define NUM_FEATURES 10
#define DEVICE_FEATURES 13
#define SERVER_FEATURES 9

typedef struct {
    float uplink_noise;     /* W/Hz times the SNR gap */
    float downlink_noise;   /* W/Hz times the SNR gap */
    float efficiency_max;   /* bit/s/Hz */
    float rate_min;         /* bit/s */
    float draft_bits;       /* of the assumed draft; 0 where the mode does not draft */
    float draft_length;     /* tokens */
    float presence;         /* share of time that another request sits in a forward pass */
    float residual_share;   /* of a pass that a returning request waits */
    float chunk_tokens;     /* prefill tokens per pass */
    float drafts;           /* 1: a round is the sum of its parts; 0: the forward pass */
    float verdict_bits;     /* of a verdict without a rejection, or of one streamed token */
    float rejection_bits;   /* that a rejection adds */
} Constants;

typedef struct {
    const float *gain;           /* (B, M, E) */
    const uint8_t *reachable;    /* (B, M, E) */
    const int64_t *server;       /* (B, M), -1: none */
    const int64_t *phase;        /* (B, M) */
    const float *prompt;         /* (B, M) tokens */
    const float *tokens;         /* (B, M) of the answer so far */
    const float *kv;             /* (B, M) tokens in KV memory */
    const float *upload_bits;    /* (B, M) */
    const float *remaining;      /* (B, M) tokens */
    const float *draft_time;     /* (B, M) s per token */
    const float *acceptance;     /* (B, M) */
    const float *age;            /* (B, M) s */
    const float *waiting;        /* (B, M) requests */
    const float *power;          /* (B, M) W */
    const float *uplink_hz;      /* (B, E) */
    const float *downlink_hz;    /* (B, E) */
    const float *downlink_power; /* (B, E) W */
    const float *rtt;            /* (B, E) s */
    const float *fixed;          /* (B, E) s per pass */
    const float *row;            /* (B, E) s per sequence */
    const float *token;          /* (B, E) s per new token */
    const float *cached;         /* (B, E) s per cached token */
    const float *foreign_rows;   /* (B, E) */
    const float *foreign_tokens; /* (B, E) prefill backlog of others */
    const float *kv_free;        /* (B, E) tokens */
} Inputs;

typedef struct {
    float *device; /* (DEVICE_FEATURES, B, M) */
    float *pair;   /* (B, NUM_FEATURES, E, M) */
    float *server; /* (SERVER_FEATURES, B, E) */
} Outputs;

static inline float clampf(float x, float low, float high) {
    x = x < low ? low : x;
    return x > high ? high : x;
}

enum { IDLE = 0, UPLOADING = 1, PREFILLING = 2, DECODING = 3 };

/* What the devices of a network know of themselves. */
static void device_rows(const Inputs *in, const Outputs *out, int64_t b, int64_t B, int64_t M) {
    const int64_t first = b * M, plane = B * M;
    const int64_t *restrict phase = in->phase + first, *restrict server = in->server + first;
    const float *restrict remaining = in->remaining + first, *restrict bits = in->upload_bits + first;
    const float *restrict prompt = in->prompt + first, *restrict tokens = in->tokens + first;
    const float *restrict acceptance = in->acceptance + first, *restrict age = in->age + first;
    const float *restrict draft_time = in->draft_time + first, *restrict queue = in->waiting + first;
    float *restrict row = out->device + first;
#pragma omp simd
    for (int64_t m = 0; m < M; m++) {
        const int32_t now = (int32_t)phase[m];
        const float active = now != IDLE ? 1.0f : 0.0f;
        row[m] = active;
        row[plane + m] = server[m] < 0 ? active : 0.0f;
        row[2 * plane + m] = now == UPLOADING ? 1.0f : 0.0f;
        row[3 * plane + m] = now == PREFILLING ? 1.0f : 0.0f;
        row[4 * plane + m] = now == DECODING ? 1.0f : 0.0f;
        row[5 * plane + m] = clampf(remaining[m] * 0.01f, 0.0f, 10.0f) * active;
        row[6 * plane + m] = clampf(log1p_of(bits[m] * 1e-6f), 0.0f, 8.0f) * active;
        row[7 * plane + m] = clampf(prompt[m] * 1e-3f, 0.0f, 20.0f) * active;
        row[8 * plane + m] = clampf(tokens[m] * 0.01f, 0.0f, 10.0f) * active;
        row[9 * plane + m] = clampf(acceptance[m], 0.0f, 1.0f) * active;
        row[10 * plane + m] = clampf(draft_time[m] * (1.0f / 0.03f), 0.0f, 10.0f) * active;
        row[11 * plane + m] = clampf(age[m] * 0.05f, 0.0f, 10.0f) * active;
        row[12 * plane + m] = clampf(queue[m] * 0.5f, 0.0f, 10.0f) * active;
    }
}

/* What the servers of a network broadcast; `load` as below. */
static void server_rows(const Inputs *in, const Outputs *out, int64_t b, int64_t B, int64_t E,
                        const float *restrict load) {
    const int64_t first = b * E, plane = B * E;
    float *restrict row = out->server + first;
    for (int64_t e = 0; e < E; e++) {
        const int64_t s = first + e;
        const float token = in->token[s], free_tokens = in->kv_free[s];
        const float capacity = free_tokens + load[2 * E + e];
        row[e] = clampf(in->fixed[s] * (1.0f / 0.15f), 0.0f, 10.0f);
        row[plane + e] = clampf(token * (512.0f / 0.15f), 0.0f, 10.0f);
        row[2 * plane + e] = clampf(load[e] * 0.2f, 0.0f, 20.0f);
        row[3 * plane + e] = clampf(load[E + e] * 0.2f, 0.0f, 20.0f);
        row[4 * plane + e] = clampf(log1p_of(load[3 * E + e] * token) * (1.0f / 3.0f), 0.0f, 4.0f);
        row[5 * plane + e] = clampf(in->foreign_rows[s] * 0.125f, 0.0f, 20.0f);
        row[6 * plane + e] = clampf(free_tokens / (capacity < 1.0f ? 1.0f : capacity), 0.0f, 1.0f);
        row[7 * plane + e] = clampf(in->uplink_hz[s] * 1e-6f, 0.0f, 100.0f);
        row[8 * plane + e] = clampf(in->rtt[s] * 10.0f, 0.0f, 10.0f);
    }
}

/* The pairs of one network. `load` receives (4, E): requests, uploading, held tokens, backlog tokens; `rows`
 * receives (F, E, M); `work` is scratch of (NUM_FEATURES * E + 11) * width floats. */
static void pair_rows(const Inputs *in, const Constants *c, int64_t b, int64_t M, int64_t E,
                      float *restrict load, float *restrict rows, float *restrict work) {
    const int64_t width = (M + LANES - 1) / LANES * LANES, plane = E * width;
    const int64_t *server = in->server + b * M, *phase = in->phase + b * M;
    float *restrict feature = work, *restrict column = work + NUM_FEATURES * plane;
    float *restrict context = column, *restrict kv = column + width;
    float *restrict upload = column + 2 * width, *restrict remaining = column + 3 * width;
    float *restrict draft_s = column + 4 * width, *restrict verdict = column + 5 * width;
    float *restrict per_token = column + 6 * width, *restrict power = column + 7 * width;
    float *restrict weight = column + 8 * width, *restrict best = column + 9 * width;
    float *restrict alpha = column + 10 * width;
    float *restrict requests = load, *restrict held = load + 2 * E, *restrict backlog = load + 3 * E;

    for (int64_t e = 0; e < E; e++) {
        requests[e] = load[E + e] = held[e] = 0.0f;
        backlog[e] = in->foreign_tokens[b * E + e];
    }
    for (int64_t m = 0; m < width; m++) {
        const int64_t i = b * M + (m < M ? m : M - 1);
        context[m] = in->prompt[i] + in->tokens[i];
        kv[m] = in->kv[i];
        upload[m] = in->upload_bits[i];
        remaining[m] = in->remaining[i];
        draft_s[m] = c->draft_length * in->draft_time[i];
        alpha[m] = in->acceptance[i];
        power[m] = in->power[i] / c->uplink_noise;
        weight[m] = in->phase[i] != IDLE ? 1.0f / 3.0f : 0.0f;
        best[m] = 1e30f;
    }
#pragma omp simd
    for (int64_t m = 0; m < width; m++) {
        const float a = alpha[m], log_a = log_of(a < 1e-30f ? 1e-30f : a);
        const float exponent = c->draft_length * log_a;
        const float survives = exp_of(exponent);
        const float rest = 1.0f - a < 1e-6f ? 1e-6f : 1.0f - a;
        const float gone = 1.0f - survives * a;
        /* arXiv 2211.17192 eq. 1 and its limit; without drafts one token. */
        const float inverse = a > 1.0f - 1e-5f ? 1.0f / (c->draft_length + 1.0f) : rest / gone;
        verdict[m] = c->verdict_bits + c->rejection_bits * (1.0f - survives);
        per_token[m] = c->drafts > 0.0f ? inverse : 1.0f;
    }
    for (int64_t m = 0; m < M; m++)
        if (phase[m] != IDLE && server[m] >= 0) {
            const int64_t e = server[m];
            const float missing = context[m] - kv[m];
            requests[e] += 1.0f;
            load[E + e] += phase[m] == UPLOADING ? 1.0f : 0.0f;
            held[e] += kv[m];
            backlog[e] += missing > 0.0f ? missing : 0.0f;
        }
    /* 0 gain, 2 who serves and 8 reach, side by side over devices. */
    for (int64_t m = 0; m < M; m++)
        for (int64_t e = 0; e < E; e++) {
            feature[e * width + m] = in->gain[(b * M + m) * E + e];
            feature[2 * plane + e * width + m] = 0.0f;
            feature[8 * plane + e * width + m] = in->reachable[(b * M + m) * E + e] ? 0.0f : 1e30f;
        }
    for (int64_t e = 0; e < E; e++)
        for (int64_t m = M; m < width; m++) {
            feature[e * width + m] = 1e-12f;
            feature[2 * plane + e * width + m] = feature[8 * plane + e * width + m] = 0.0f;
        }
    for (int64_t m = 0; m < M; m++)
        if (phase[m] != IDLE && server[m] >= 0) feature[2 * plane + server[m] * width + m] = 1.0f;

    for (int64_t e = 0; e < E; e++) {
        const int64_t s = b * E + e;
        const float token = in->token[s], cached = in->cached[s], fixed = in->fixed[s];
        const float row_s = in->row[s] + (c->draft_length + 1.0f) * token;
        const float foreign = in->foreign_rows[s];
        const float is_free = foreign <= 0.0f ? 1.0f : 0.0f;
        const float staying = requests[e] > 1.0f ? requests[e] - 1.0f : 0.0f;
        const float idle_join = is_free * powf(1.0f - c->presence, requests[e]);
        const float idle_stay = is_free * powf(1.0f - c->presence, staying);
        const float pass_s = fixed + foreign * (in->row[s] + token) + row_s +
                             c->presence * (requests[e] * row_s + held[e] * cached);
        const float band_up = in->uplink_hz[s], band_down = in->downlink_hz[s];
        const float down = in->downlink_power[s] / (band_down * c->downlink_noise);
        const float rtt = in->rtt[s], joining = requests[e], queue = backlog[e];
        float *restrict gain = feature + e * width, *restrict efficiency = gain + plane;
        float *restrict serves = gain + 2 * plane, *restrict holds = gain + 3 * plane;
        float *restrict upload_s = gain + 4 * plane, *restrict prefill_s = gain + 5 * plane;
        float *restrict total_s = gain + 6 * plane, *restrict reach = gain + 8 * plane;
        float *restrict tpot = gain + 9 * plane;
#pragma omp simd
        for (int64_t m = 0; m < width; m++) {
            const float is_here = serves[m], g = gain[m];
            const float idle = idle_join + is_here * (idle_stay - idle_join);
            const float others = joining - is_here, sharers = others + 1.0f;
            const float up_hz = band_up / sharers;
            float up = log1p_of(g * power[m] / up_hz) * 1.44269504f;
            up = up > c->efficiency_max ? c->efficiency_max : up;
            float dn = log1p_of(g * down) * 1.44269504f;
            dn = dn > c->efficiency_max ? c->efficiency_max : dn;
            float up_bps = up_hz * up, dn_bps = band_down / sharers * dn;
            up_bps = up_bps < c->rate_min ? c->rate_min : up_bps;
            dn_bps = dn_bps < c->rate_min ? c->rate_min : dn_bps;
            const float verify =
                pass_s + context[m] * cached - c->presence * is_here * (row_s + kv[m] * cached);
            const float wait = c->residual_share * (1.0f - idle) * verify;
            const float parts = draft_s[m] + c->draft_bits / up_bps + wait + verdict[m] / dn_bps + rtt;
            const float tpot_s = (verify + c->drafts * parts) * per_token[m];
            const float hold = kv[m] * is_here;
            float lacking = context[m] - hold;
            lacking = lacking < 0.0f ? 0.0f : lacking;
            const float waiting = queue - lacking * is_here;
            const float ahead = (lacking > 0.0f ? 0.5f : 0.0f) * waiting;
            const float second_per_token =
                token + (1.0f - idle * (1.0f - c->presence)) * fixed / c->chunk_tokens;
            const float up_s = upload[m] / up_bps, pre_s = (lacking + ahead) * second_per_token;
            const float all_s =
                up_s + pre_s + (waiting - ahead) * token + remaining[m] * tpot_s;
            const float blocked = all_s + reach[m];
            best[m] = blocked < best[m] ? blocked : best[m];
            total_s[m] = all_s;
            gain[m] = clampf((10.0f * 0.434294482f * log_of(g > 1e-30f ? g : 1e-30f) + 100.0f) * 0.05f,
                             -5.0f, 5.0f);
            efficiency[m] = clampf(up * 0.2f, 0.0f, 4.0f);
            holds[m] = clampf(hold * 1e-3f, 0.0f, 20.0f);
            upload_s[m] = clampf(log_of(1.0f + up_s) * weight[m], 0.0f, 4.0f);
            prefill_s[m] = clampf(log_of(1.0f + pre_s) * weight[m], 0.0f, 4.0f);
            tpot[m] = clampf(log_of(1.0f + 10.0f * tpot_s) * weight[m], 0.0f, 4.0f);
            reach[m] = clampf(log_of(1.0f + others * lacking * token) * weight[m], 0.0f, 4.0f);
        }
    }
    for (int64_t e = 0; e < E; e++) {
        float *restrict total_s = feature + 6 * plane + e * width;
        float *restrict regret = total_s + plane;
#pragma omp simd
        for (int64_t m = 0; m < width; m++) {
            const float all_s = total_s[m];
            const float beyond = all_s > best[m] ? all_s - best[m] : 0.0f;
            regret[m] = clampf(log_of(1.0f + beyond) * weight[m], 0.0f, 4.0f);
            total_s[m] = clampf(log_of(1.0f + all_s) * weight[m], 0.0f, 4.0f);
        }
    }
    for (int64_t f = 0; f < NUM_FEATURES; f++)
        for (int64_t e = 0; e < E; e++)
            for (int64_t m = 0; m < M; m++)
                rows[(f * E + e) * M + m] = feature[f * plane + e * width + m];
}

/* `load` and `work` are scratch; the first of 4 E floats. */
void observe(const Inputs *in, const Constants *c, int64_t B, int64_t M, int64_t E,
             const Outputs *out, float *load, float *work) {
    for (int64_t b = 0; b < B; b++) {
        device_rows(in, out, b, B, M);
        pair_rows(in, c, b, M, E, load, out->pair + b * NUM_FEATURES * E * M, work);
        server_rows(in, out, b, B, E, load);
    }
}
