/* Features of the (device, server) pairs of one network: the arithmetic of
 * envs/local_prediction.py, fused.
 *
 * Shape legend: M devices, E servers. Devices lie innermost, one per lane, padded to whole vectors;
 * a lane of padding repeats the last device.
 */
#ifndef UARA_OBSERVE_PAIRS_H
#define UARA_OBSERVE_PAIRS_H

#include "observe_inputs.h"

/* Features in the order of the schema; until they are worked out, three hold inputs. */
enum {
    GAIN_DB, EFFICIENCY, SERVES, HELD, UPLOAD_S, PREFILL_S, REMAINING_S, REGRET_S, INFLICTED_S,
    TPOT_S, FEATURES, GAIN = GAIN_DB, REACH = INFLICTED_S
};
/* Scratch of a network: rows over devices, ... */
enum {
    CONTEXT, KV, UPLOAD, TO_COME, DRAFT, POWER, WEIGHT, ALPHA, LOADED_ROWS, VERDICT = LOADED_ROWS,
    PER_TOKEN, BEST, UP_S, DOWN_S, SENT, TOTAL, TOTAL_END, DEVICE_ROWS /* totals are of double width */
};
/* ... over servers, ... */
enum { REQUESTS, SENDING, HOLDING, BACKLOG, SERVER_ROWS };
/* ... and over both. */
enum { UP_NOISE, DOWN_NOISE, PAIR_ROWS };

typedef struct {
    const Inputs *in;
    const Constants *c;
    int64_t M, E, width;
    int64_t device, server; /* the network's first ones of all */
    float *features;        /* (FEATURES, E, width) */
    float *devices;         /* (DEVICE_ROWS, width) */
    float *servers;         /* (SERVER_ROWS, E) */
    float *noise;           /* (PAIR_ROWS, E, width), over the receiver's own */
} Network;

#define FEATURE(name, e) (n->features + ((name) * n->E + (e)) * n->width)
#define DEVICE(name) (n->devices + (name) * n->width)
#define OF_SERVER(name) (n->servers + (name) * n->E)
#define NOISE(name, e) (n->noise + ((name) * n->E + (e)) * n->width)

static void load_devices(const Network *n) {
    const Inputs *in = n->in;
    const Constants *c = n->c;
    float *restrict context = DEVICE(CONTEXT), *restrict kv = DEVICE(KV);
    float *restrict upload = DEVICE(UPLOAD), *restrict to_come = DEVICE(TO_COME);
    float *restrict draft = DEVICE(DRAFT), *restrict verdict = DEVICE(VERDICT);
    float *restrict per_token = DEVICE(PER_TOKEN), *restrict power = DEVICE(POWER);
    float *restrict weight = DEVICE(WEIGHT), *restrict best = DEVICE(BEST);
    float *restrict alpha = DEVICE(ALPHA);
    const int64_t i = n->device, last = n->M - 1;
    const int64_t *restrict phase = in->phase + i;
    const float *restrict prompt = in->prompt + i, *restrict tokens = in->tokens + i;
    const float *restrict limit = in->power + i, *restrict draft_time = in->draft_time + i;
    const float *restrict kv_in = in->kv + i, *restrict bits = in->upload_bits + i;
    const float *restrict remaining = in->remaining + i, *restrict known = in->acceptance + i;
    const float per_noise = 1.0f / c->uplink_noise;
#pragma omp simd
    for (int64_t m = 0; m < n->M; m++) {
        context[m] = prompt[m] + tokens[m];
        kv[m] = kv_in[m];
        upload[m] = bits[m];
        to_come[m] = remaining[m];
        draft[m] = c->draft_length * draft_time[m];
        alpha[m] = known[m];
        power[m] = limit[m] * per_noise;
        weight[m] = (int32_t)phase[m] != IDLE ? 1.0f / 3.0f : 0.0f;
    }
    for (int row = 0; row < LOADED_ROWS; row++) {
        float *restrict to = DEVICE(row);
        for (int64_t m = n->M; m < n->width; m++) to[m] = to[last];
    }
#pragma omp simd
    for (int64_t m = 0; m < n->width; m++) {
        const float a = alpha[m], survives = exp_of(c->draft_length * log_of(a < 1e-30f ? 1e-30f : a));
        const float rest = 1.0f - a < 1e-6f ? 1e-6f : 1.0f - a, gone = 1.0f - survives * a;
        /* arXiv 2211.17192 eq. 1 and its limit; without drafts one token. */
        const float inverse = a > 1.0f - 1e-5f ? 1.0f / (c->draft_length + 1.0f) : rest / gone;
        verdict[m] = c->verdict_bits + c->rejection_bits * (1.0f - survives);
        per_token[m] = c->drafts > 0.0f ? inverse : 1.0f;
        best[m] = 1e30f;
    }
}

/* What servers broadcast of the requests on them. */
static void load_servers(const Network *n) {
    const int64_t *server = n->in->server + n->device, *phase = n->in->phase + n->device;
    const float *context = DEVICE(CONTEXT), *kv = DEVICE(KV);
    float *requests = OF_SERVER(REQUESTS), *uploading = OF_SERVER(SENDING);
    float *held = OF_SERVER(HOLDING), *backlog = OF_SERVER(BACKLOG);
    for (int64_t e = 0; e < n->E; e++) {
        requests[e] = uploading[e] = held[e] = 0.0f;
        backlog[e] = n->in->foreign_tokens[n->server + e];
    }
    for (int64_t m = 0; m < n->M; m++)
        if (phase[m] != IDLE && server[m] >= 0) {
            const int64_t e = server[m];
            const float missing = context[m] - kv[m];
            requests[e] += 1.0f;
            uploading[e] += phase[m] == UPLOADING ? 1.0f : 0.0f;
            held[e] += kv[m];
            backlog[e] += missing > 0.0f ? missing : 0.0f;
        }
}

/* Gains, who serves whom, and what is out of reach: devices side by side. */
static void load_pairs(const Network *n) {
    const int64_t M = n->M, E = n->E, width = n->width, plane = E * width;
    const float *restrict gain_in = n->in->gain + n->device * E;
    const uint8_t *restrict reachable = n->in->reachable + n->device * E;
    const int64_t *restrict server = n->in->server + n->device, *restrict phase = n->in->phase + n->device;
    float *restrict gain = FEATURE(GAIN, 0), *restrict serves = FEATURE(SERVES, 0);
    float *restrict reach = FEATURE(REACH, 0);
    for (int64_t i = 0; i < plane; i++) serves[i] = 0.0f;
    for (int64_t m = 0; m < M; m++) {
        for (int64_t e = 0; e < E; e++) {
            gain[e * width + m] = gain_in[m * E + e];
            reach[e * width + m] = reachable[m * E + e] ? 0.0f : 1e30f;
        }
        if (phase[m] != IDLE && server[m] >= 0) serves[server[m] * width + m] = 1.0f;
    }
    for (int64_t e = 0; e < E; e++)
        for (int64_t m = M; m < width; m++) {
            gain[e * width + m] = 1e-12f;
            reach[e * width + m] = 0.0f;
        }
}

/* Noise with interference over noise, of each pair and both directions, from what a device takes
 * the others to send. Totals are of double width: the own part that is taken off again may be a
 * million times the rest. */
static void find_noise(const Network *n) {
    const Inputs *in = n->in;
    const int64_t M = n->M, E = n->E, width = n->width, s0 = n->server;
    const int64_t *server = in->server + n->device, *phase = in->phase + n->device;
    const float *restrict requests = OF_SERVER(REQUESTS);
    float *restrict sent = DEVICE(SENT);
    double *restrict total = (double *)DEVICE(TOTAL);
    for (int64_t m = 0; m < width; m++) {
        total[m] = 0.0;
        sent[m] = 0.0f;
        if (m >= M || phase[m] == IDLE || server[m] < 0) continue;
        const float activity = phase[m] == UPLOADING ? 1.0f : n->c->activity;
        sent[m] = in->power[n->device + m] * activity / in->uplink_hz[s0 + server[m]];
    }
    for (int64_t e = 0; e < E; e++) {
        const float *restrict gain = FEATURE(GAIN, e), *restrict serves = FEATURE(SERVES, e);
        float *restrict up = NOISE(UP_NOISE, e), *restrict down = NOISE(DOWN_NOISE, e);
        const float busy = n->c->activity * requests[e];
        const float density =
            in->downlink_power[s0 + e] * (busy > 1.0f ? 1.0f : busy) / in->downlink_hz[s0 + e];
        double heard = 0.0;
#pragma omp simd reduction(+ : heard)
        for (int64_t m = 0; m < width; m++) {
            up[m] = gain[m] * sent[m] * (1.0f - serves[m]);
            down[m] = gain[m] * density;
            heard += (double)up[m];
            total[m] += (double)down[m];
        }
#pragma omp simd
        for (int64_t m = 0; m < width; m++)
            up[m] = 1.0f + (float)(heard - (double)up[m]) / n->c->uplink_noise;
    }
    for (int64_t e = 0; e < E; e++) {
        float *restrict down = NOISE(DOWN_NOISE, e);
#pragma omp simd
        for (int64_t m = 0; m < width; m++)
            down[m] = 1.0f + (float)(total[m] - (double)down[m]) / n->c->downlink_noise;
    }
}

/* What a server means to every device: its times, for one more request and for one it has. */
typedef struct {
    float token, cached, fixed_per_token, row_s, pass_s, rtt, requests, backlog;
    float idle_join, idle_stay, share_join, share_stay; /* of passes; of the bands */
    float up_hz, down_hz, down_density;
} Offer;

static Offer offer_of(const Network *n, int64_t e) {
    const Inputs *in = n->in;
    const Constants *c = n->c;
    const int64_t s = n->server + e;
    const float joining = OF_SERVER(REQUESTS)[e], staying = joining > 1.0f ? joining - 1.0f : 0.0f;
    const float foreign = in->foreign_rows[s], is_free = foreign <= 0.0f ? 1.0f : 0.0f;
    const float away = 1.0f - c->presence, log_away = log_of(away < 1e-30f ? 1e-30f : away);
    Offer offer = {
        .token = in->token[s], .cached = in->cached[s], .rtt = in->rtt[s], .requests = joining,
        .backlog = OF_SERVER(BACKLOG)[e], .up_hz = in->uplink_hz[s], .down_hz = in->downlink_hz[s]};
    offer.fixed_per_token = in->fixed[s] / c->chunk_tokens;
    offer.row_s = in->row[s] + (c->draft_length + 1.0f) * offer.token;
    offer.pass_s = in->fixed[s] + foreign * (in->row[s] + offer.token) + offer.row_s +
                   c->presence * (joining * offer.row_s + OF_SERVER(HOLDING)[e] * offer.cached);
    offer.idle_join = is_free * exp_of(joining * log_away);
    offer.idle_stay = is_free * exp_of(staying * log_away);
    offer.share_join = 1.0f / (joining + 1.0f);
    offer.share_stay = 1.0f / (staying + 1.0f);
    offer.down_density = in->downlink_power[s] / (offer.down_hz * c->downlink_noise);
    return offer;
}

/* Rates of all devices to one server: the uplink's efficiency, and seconds per bit both ways. */
static inline __attribute__((always_inline)) void find_rates(
    const Network *n, int64_t e, const Offer *offer, const int is_shared, const int is_mcs) {
    const Constants *c = n->c;
    const Inputs *in = n->in;
    const float *restrict gain = FEATURE(GAIN, e), *restrict serves = FEATURE(SERVES, e);
    const float *restrict power = DEVICE(POWER);
    const float *restrict up_noise = NOISE(UP_NOISE, e), *restrict down_noise = NOISE(DOWN_NOISE, e);
    const float per_hz = 1.0f / offer->up_hz, density = offer->down_density;
    const float join = offer->share_join, stay = offer->share_stay, sharers = offer->requests + 1.0f;
    float *restrict efficiency = FEATURE(EFFICIENCY, e);
    float *restrict up_s = DEVICE(UP_S), *restrict down_s = DEVICE(DOWN_S);
#pragma omp simd
    for (int64_t m = 0; m < n->width; m++) {
        const float g = gain[m], share = serves[m] > 0.0f ? stay : join;
        float up = g * power[m] * ((sharers - serves[m]) * per_hz), down = g * density;
        if (is_shared) {
            up /= up_noise[m];
            down /= down_noise[m];
        }
        up = efficiency_of(up, &c->link, in->uplink_table, is_mcs);
        down = efficiency_of(down, &c->link, in->downlink_table, is_mcs);
        const float up_bps = offer->up_hz * share * up, down_bps = offer->down_hz * share * down;
        up_s[m] = 1.0f / (up_bps < c->rate_min ? c->rate_min : up_bps);
        down_s[m] = 1.0f / (down_bps < c->rate_min ? c->rate_min : down_bps);
        efficiency[m] = clampf(up * 0.2f, 0.0f, 4.0f);
    }
}

/* Times of all devices on one server. */
static void find_times(const Network *n, int64_t e, const Offer *offer) {
    const Constants *c = n->c;
    const Offer o = *offer;
    const float *restrict up_s = DEVICE(UP_S), *restrict down_s = DEVICE(DOWN_S);
    const float *restrict context = DEVICE(CONTEXT), *restrict kv = DEVICE(KV);
    const float *restrict upload = DEVICE(UPLOAD), *restrict to_come = DEVICE(TO_COME);
    const float *restrict draft = DEVICE(DRAFT), *restrict verdict = DEVICE(VERDICT);
    const float *restrict per_token = DEVICE(PER_TOKEN), *restrict weight = DEVICE(WEIGHT);
    const float *restrict serves = FEATURE(SERVES, e);
    float *restrict gain = FEATURE(GAIN, e), *restrict holds = FEATURE(HELD, e);
    float *restrict upload_s = FEATURE(UPLOAD_S, e), *restrict prefill_s = FEATURE(PREFILL_S, e);
    float *restrict total_s = FEATURE(REMAINING_S, e), *restrict tpot = FEATURE(TPOT_S, e);
    float *restrict reach = FEATURE(REACH, e), *restrict best = DEVICE(BEST);
#pragma omp simd
    for (int64_t m = 0; m < n->width; m++) {
        const float is_here = serves[m], g = gain[m];
        const float idle = is_here > 0.0f ? o.idle_stay : o.idle_join, others = o.requests - is_here;
        const float verify =
            o.pass_s + context[m] * o.cached - c->presence * is_here * (o.row_s + kv[m] * o.cached);
        const float wait = c->residual_share * (1.0f - idle) * verify;
        const float parts =
            draft[m] + c->draft_bits * up_s[m] + wait + verdict[m] * down_s[m] + o.rtt;
        const float tpot_s = (verify + c->drafts * parts) * per_token[m];
        const float hold = kv[m] * is_here, missing = context[m] - hold;
        const float lacking = missing < 0.0f ? 0.0f : missing;
        const float waiting = o.backlog - lacking * is_here;
        const float ahead = (lacking > 0.0f ? 0.5f : 0.0f) * waiting;
        const float second_per_token =
            o.token + (1.0f - idle * (1.0f - c->presence)) * o.fixed_per_token;
        const float sending_s = upload[m] * up_s[m], reading_s = (lacking + ahead) * second_per_token;
        const float all_s = sending_s + reading_s + (waiting - ahead) * o.token + to_come[m] * tpot_s;
        const float blocked = all_s + reach[m];
        best[m] = blocked < best[m] ? blocked : best[m];
        total_s[m] = all_s;
        gain[m] = clampf((10.0f * 0.434294482f * log_of(g > 1e-30f ? g : 1e-30f) + 100.0f) * 0.05f,
                         -5.0f, 5.0f);
        holds[m] = clampf(hold * 1e-3f, 0.0f, 20.0f);
        upload_s[m] = clampf(log_of(1.0f + sending_s) * weight[m], 0.0f, 4.0f);
        prefill_s[m] = clampf(log_of(1.0f + reading_s) * weight[m], 0.0f, 4.0f);
        tpot[m] = clampf(log_of(1.0f + 10.0f * tpot_s) * weight[m], 0.0f, 4.0f);
        reach[m] = clampf(log_of(1.0f + others * lacking * o.token) * weight[m], 0.0f, 4.0f);
    }
}

/* How much longer each server would take than the best in reach. */
static void compare_servers(const Network *n) {
    const float *restrict best = DEVICE(BEST), *restrict weight = DEVICE(WEIGHT);
    for (int64_t e = 0; e < n->E; e++) {
        float *restrict total_s = FEATURE(REMAINING_S, e), *restrict regret = FEATURE(REGRET_S, e);
#pragma omp simd
        for (int64_t m = 0; m < n->width; m++) {
            const float all_s = total_s[m], beyond = all_s > best[m] ? all_s - best[m] : 0.0f;
            regret[m] = clampf(log_of(1.0f + beyond) * weight[m], 0.0f, 4.0f);
            total_s[m] = clampf(log_of(1.0f + all_s) * weight[m], 0.0f, 4.0f);
        }
    }
}

static void observe_pairs(const Network *n) {
    const int is_shared = n->c->shares_band > 0.0f, is_mcs = n->c->link.is_mcs > 0.0f;
    load_devices(n);
    load_servers(n);
    load_pairs(n);
    if (is_shared) find_noise(n);
    for (int64_t e = 0; e < n->E; e++) {
        const Offer offer = offer_of(n, e);
        if (is_shared && is_mcs)
            find_rates(n, e, &offer, 1, 1);
        else if (is_shared)
            find_rates(n, e, &offer, 1, 0);
        else if (is_mcs)
            find_rates(n, e, &offer, 0, 1);
        else
            find_rates(n, e, &offer, 0, 0);
        find_times(n, e, &offer);
    }
    compare_servers(n);
}

#endif
