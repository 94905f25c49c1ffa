/* Predicted cost of devices on servers: uara/prediction.py with horizon "request" for one server and
 * its set of devices, and the loops of uara/control/server_cost.py around it.
 *
 * Shape legend: B networks, M devices, E servers. Arrays are contiguous; a set's devices lie in
 * scratch columns that are padded to whole vectors with lanes that weigh nothing.
 */
#include <math.h>
#include <stdint.h>
#include <string.h>

#include "native_math.h"

#define LANES 16
#define INVERSE_LN2 1.44269504f

typedef struct {
    const float *pairs;   /* (PAIR_COLUMNS, B, E, M) */
    const float *devices; /* (DEVICE_COLUMNS, B, M) */
    const float *servers; /* (SERVER_COLUMNS, B, E) */
    const uint8_t *has;   /* (B, M) has a request */
    float *scratch;       /* (SCRATCH_COLUMNS, width) */
    int64_t *members;     /* (E, M) */
    int64_t *counts;      /* (E,) */
    float *costs;         /* (E,) */
    int64_t *place;       /* (M,) position in its server's list */
} Tables;

typedef struct {
    float efficiency_max; /* bit/s/Hz */
    float rate_min;       /* bit/s */
    float chunk_tokens;   /* prefill tokens per pass */
    float is_equal;       /* 1: bands are split equally; 0: by square roots */
    float iterations;     /* of the batching fixed point */
    float tie;            /* of the total */
} Constants;

/* The same orders as in native_cost.py. */
enum { SNR_HZ, DOWNLINK_S, OWN_S, NEED, TRANSFER_S, PAIR_COLUMNS };
enum { UPLOAD_BITS, DRAFT_BITS, ALL_BITS, VERDICT_BITS, DRAFT_S, ROUNDS, WEIGHT, DEVICE_COLUMNS };
enum { BAND, FIXED, BASE, IS_FREE, TOKEN_S, RTT, FOREIGN_TOKENS, SERVER_COLUMNS };
enum {
    S_SNR, S_DOWN, S_OWN, S_NEED, S_LATER, S_UPLOAD, S_DRAFT, S_ALL, S_VERDICT, S_DRAFTING, S_ROUNDS,
    S_WEIGHT, S_EXISTS, S_SHARE, S_UP, S_THINK, S_WAITS, S_PASS, S_WAIT, S_PRESENCE, S_IDLE, S_SECONDS,
    SCRATCH_COLUMNS
};

typedef struct {
    const Tables *t;
    const Constants *c;
    int64_t B, M, E, b, width;
} Network;

#define COLUMN(name) (n->t->scratch + (name) * n->width)
#define OF_SERVER(name, e) (n->t->servers[((name) * n->B + n->b) * n->E + (e)])
#define OF_DEVICE(name) (n->t->devices + ((name) * n->B + n->b) * n->M)
#define OF_PAIR(name, e) (n->t->pairs + (((name) * n->B + n->b) * n->E + (e)) * n->M)

static inline float at_least(float x, float low) { return x < low ? low : x; }
static inline float at_most(float x, float high) { return x > high ? high : x; }

static inline float efficiency_of(float snr, float most) {
    return at_most(log1p_of(snr) * INVERSE_LN2, most);
}

/* Bring a set's columns together; `extra` joins and `without` leaves (-1: nobody). Returns how many
 * there are; `extra` comes last. */
static int64_t gather(const Network *n, int64_t e, int64_t without, int64_t extra, int64_t *padded) {
    static const int from_pair[] = {SNR_HZ, DOWNLINK_S, OWN_S, NEED, TRANSFER_S};
    static const int from_device[] = {UPLOAD_BITS, DRAFT_BITS, ALL_BITS, VERDICT_BITS,
                                      DRAFT_S, ROUNDS, WEIGHT};
    int64_t *restrict list = n->t->members + e * n->M;
    const int64_t count = n->t->counts[e];
    int64_t last = 0, chosen = count;
    /* The list is changed for as long as it is read: a copy would cost more. */
    if (without >= 0) {
        last = list[count - 1];
        list[n->t->place[without]] = last;
        chosen = count - 1;
    }
    const int64_t total = chosen + (extra >= 0);
    const int64_t width = (total + LANES - 1) / LANES * LANES;
    for (int k = 0; k < PAIR_COLUMNS; k++) {
        const float *restrict from = OF_PAIR(from_pair[k], e);
        float *restrict to = COLUMN(S_SNR + k);
        for (int64_t i = 0; i < chosen; i++) to[i] = from[list[i]];
        if (extra >= 0) to[chosen] = from[extra];
        for (int64_t i = total; i < width; i++) to[i] = 0.0f;
    }
    for (int k = 0; k < DEVICE_COLUMNS; k++) {
        const float *restrict from = OF_DEVICE(from_device[k]);
        float *restrict to = COLUMN(S_UPLOAD + k);
        for (int64_t i = 0; i < chosen; i++) to[i] = from[list[i]];
        if (extra >= 0) to[chosen] = from[extra];
        for (int64_t i = total; i < width; i++) to[i] = 0.0f;
    }
    float *restrict exists = COLUMN(S_EXISTS);
    for (int64_t i = 0; i < width; i++) exists[i] = i < total ? 1.0f : 0.0f;
    if (without >= 0) {
        list[n->t->place[without]] = without;
        list[count - 1] = last == without ? without : last;
    }
    *padded = width;
    return total;
}

/* Split the band and find rates; leaves upload and think times. */
static void transmit(const Network *n, int64_t e, int64_t total, int64_t width) {
    const float band = OF_SERVER(BAND, e), rtt = OF_SERVER(RTT, e), count = (float)total;
    const float share = band / count, most = n->c->efficiency_max, rate_min = n->c->rate_min;
    const float is_equal = n->c->is_equal;
    const float *restrict snr = COLUMN(S_SNR), *restrict down = COLUMN(S_DOWN);
    const float *restrict upload = COLUMN(S_UPLOAD), *restrict draft = COLUMN(S_DRAFT);
    const float *restrict all = COLUMN(S_ALL), *restrict verdict = COLUMN(S_VERDICT);
    const float *restrict drafting = COLUMN(S_DRAFTING), *restrict exists = COLUMN(S_EXISTS);
    float *restrict shares = COLUMN(S_SHARE), *restrict up = COLUMN(S_UP);
    float *restrict think = COLUMN(S_THINK), *restrict waits = COLUMN(S_WAITS);
    float sum = 0.0f;
#pragma omp simd reduction(+ : sum)
    for (int64_t i = 0; i < width; i++) {
        const float efficiency = efficiency_of(snr[i] / at_least(share, 1.0f), most);
        const float root = sqrtf(all[i] / at_least(efficiency, 1e-3f));
        shares[i] = (is_equal > 0.0f ? 1.0f : root) * exists[i];
        sum += shares[i];
    }
    const float scale = band / at_least(sum, 1e-30f);
#pragma omp simd
    for (int64_t i = 0; i < width; i++) {
        const float hertz = shares[i] * scale;
        const float efficiency = efficiency_of(snr[i] / at_least(hertz, 1e-3f), most);
        const float rate = at_least(hertz * efficiency, rate_min);
        up[i] = upload[i] / rate;
        const float down_s = at_most(down[i] * count, verdict[i] / rate_min);
        const float drafts = draft[i] > 0.0f ? 1.0f : 0.0f;
        waits[i] = drafts;
        think[i] = drafts * (drafting[i] + draft[i] / rate + down_s + rtt);
    }
}

/* The damped fixed point of uara/serving/batching.py; the chance that others sit in no pass is a
 * product here. Returns the share of time in which the server computes. */
static float batch(const Network *n, int64_t e, int64_t width) {
    const float base = OF_SERVER(BASE, e), is_free = OF_SERVER(IS_FREE, e);
    const float *restrict own = COLUMN(S_OWN), *restrict think = COLUMN(S_THINK);
    const float *restrict waits = COLUMN(S_WAITS), *restrict exists = COLUMN(S_EXISTS);
    float *restrict pass = COLUMN(S_PASS), *restrict wait = COLUMN(S_WAIT);
    float *restrict presence = COLUMN(S_PRESENCE), *restrict idle = COLUMN(S_IDLE);
    float product = 1.0f, work = 0.0f;
#pragma omp simd reduction(* : product) reduction(+ : work)
    for (int64_t i = 0; i < width; i++) {
        pass[i] = base + own[i];
        wait[i] = 0.0f;
        presence[i] = exists[i] * pass[i] / (think[i] + pass[i]);
        idle[i] = 1.0f - at_most(presence[i], 1.0f - 1e-6f);
        product *= idle[i];
        work += presence[i] * own[i];
    }
    for (int turn = 0; turn < (int)n->c->iterations; turn++) {
        float next = 1.0f, next_work = 0.0f;
#pragma omp simd reduction(* : next) reduction(+ : next_work)
        for (int64_t i = 0; i < width; i++) {
            const float busy = 1.0f - is_free * product / idle[i];
            const float verify = base + own[i] + (work - presence[i] * own[i]);
            const float turns = think[i] / verify + 0.75f, phase = turns - floorf(turns);
            const float share = 0.25f + fabsf(phase - 0.5f);
            const float waited = 0.5f * (wait[i] + waits[i] * busy * share * verify);
            const float sits = exists[i] * verify / (think[i] + waited + verify);
            pass[i] = verify;
            wait[i] = waited;
            presence[i] = sits;
            idle[i] = 1.0f - at_most(sits, 1.0f - 1e-6f);
            next *= idle[i];
            next_work += sits * own[i];
        }
        product = next;
        work = next_work;
    }
    return 1.0f - product * is_free;
}

/* Remaining seconds into S_SECONDS; returns their weighted sum, `own` gets those of `extra`. */
static float price_set(const Network *n, int64_t e, int64_t without, int64_t extra, float *own) {
    int64_t width;
    const int64_t total = gather(n, e, without, extra, &width);
    if (total == 0) return 0.0f;
    transmit(n, e, total, width);
    const float busy = batch(n, e, width);
    const float token = OF_SERVER(TOKEN_S, e), chunk = n->c->chunk_tokens;
    const float inverse_rate = (chunk * token + busy * OF_SERVER(FIXED, e)) / chunk;
    const float *restrict need = COLUMN(S_NEED), *restrict later = COLUMN(S_LATER);
    const float *restrict up = COLUMN(S_UP), *restrict rounds = COLUMN(S_ROUNDS);
    const float *restrict think = COLUMN(S_THINK), *restrict wait = COLUMN(S_WAIT);
    const float *restrict pass = COLUMN(S_PASS), *restrict weight = COLUMN(S_WEIGHT);
    float *restrict seconds = COLUMN(S_SECONDS);
    float queue = OF_SERVER(FOREIGN_TOKENS, e), sum = 0.0f;
#pragma omp simd reduction(+ : queue)
    for (int64_t i = 0; i < width; i++) queue += need[i];
#pragma omp simd reduction(+ : sum)
    for (int64_t i = 0; i < width; i++) {
        const float ahead = queue - need[i];
        const float prefill = need[i] > 0.0f ? (need[i] + 0.5f * ahead) * inverse_rate : 0.0f;
        const float lost = (need[i] > 0.0f ? 0.5f : 1.0f) * ahead * token;
        const float round = think[i] + wait[i] + pass[i];
        seconds[i] = up[i] + prefill + later[i] + lost + rounds[i] * round;
        sum += weight[i] * seconds[i];
    }
    if (own) *own = seconds[total - 1];
    return sum;
}

static void enter(const Network *n, int64_t m, int64_t e) {
    n->t->place[m] = n->t->counts[e];
    n->t->members[e * n->M + n->t->counts[e]++] = m;
}

static void leave(const Network *n, int64_t m, int64_t e) {
    int64_t *list = n->t->members + e * n->M;
    const int64_t last = list[--n->t->counts[e]], at = n->t->place[m];
    list[at] = last;
    n->t->place[last] = at;
}

/* Fill the lists from a placement. */
static void settle(const Network *n, const int64_t *server, const uint8_t *placed) {
    for (int64_t e = 0; e < n->E; e++) n->t->counts[e] = 0;
    for (int64_t m = 0; m < n->M; m++)
        if (placed[m] && n->t->has[n->b * n->M + m]) enter(n, m, server[m]);
}

static float settle_and_price(const Network *n, const int64_t *server, const uint8_t *placed) {
    float total = 0.0f;
    settle(n, server, placed);
    for (int64_t e = 0; e < n->E; e++) total += n->t->costs[e] = price_set(n, e, -1, -1, 0);
    return total;
}

static Network network_of(const Tables *t, const Constants *c, int64_t B, int64_t M, int64_t E) {
    const Network n = {t, c, B, M, E, 0, (M + 1 + LANES - 1) / LANES * LANES};
    return n;
}

/* Remaining seconds of those placed, (B, M), zeroed before. */
void remaining(const Tables *t, const Constants *c, int64_t B, int64_t M, int64_t E,
               const int64_t *server, const uint8_t *placed, float *seconds) {
    Network local = network_of(t, c, B, M, E), *n = &local;
    for (n->b = 0; n->b < B; n->b++) {
        settle(n, server + n->b * M, placed + n->b * M);
        for (int64_t e = 0; e < E; e++) {
            price_set(n, e, -1, -1, 0);
            const float *restrict found = COLUMN(S_SECONDS);
            for (int64_t i = 0; i < t->counts[e]; i++)
                seconds[n->b * M + t->members[e * M + i]] = found[i];
        }
    }
}

/* Others' weighted seconds and own seconds of one device per network on every server, (B, E). */
void join(const Tables *t, const Constants *c, int64_t B, int64_t M, int64_t E,
          const int64_t *server, uint8_t *placed, const int64_t *device, float *others, float *own) {
    Network local = network_of(t, c, B, M, E), *n = &local;
    for (n->b = 0; n->b < B; n->b++) {
        const int64_t m = device[n->b];
        placed[n->b * M + m] = 0;
        const float rest = settle_and_price(n, server + n->b * M, placed + n->b * M);
        const float weight = OF_DEVICE(WEIGHT)[m];
        for (int64_t e = 0; e < E; e++) {
            float *mine = own + n->b * E + e;
            const float joined = price_set(n, e, -1, m, mine);
            others[n->b * E + e] = rest - t->costs[e] + joined - weight * *mine;
        }
    }
}

/* One turn of `relocate`: returns the server that device m of network b ends on. */
static int64_t turn_of(const Network *n, int64_t m, int64_t from, const uint8_t *allowed, float harm,
                       float margin, float *total) {
    const float weight = OF_DEVICE(WEIGHT)[m], before = *total;
    float best = 0.0f, best_joined = 0.0f, stays = 0.0f, stays_joined = 0.0f, mine;
    int64_t chosen = -1;
    if (from >= 0) {
        stays_joined = price_set(n, from, m, m, &mine);
        leave(n, m, from);
        const float rest = price_set(n, from, -1, -1, 0);
        stays = weight * mine + harm * (stays_joined - rest - weight * mine);
        *total += rest - n->t->costs[from];
        n->t->costs[from] = rest;
    }
    for (int64_t e = 0; e < n->E; e++) {
        if (!allowed[e]) continue;
        float score = stays, joined = stays_joined;
        if (e != from) {
            joined = price_set(n, e, -1, m, &mine);
            score = weight * mine + harm * (joined - n->t->costs[e] - weight * mine);
        }
        if (chosen >= 0 && score >= best) continue;
        best = score;
        best_joined = joined;
        chosen = e;
    }
    const int may_stay = from >= 0 && (chosen < 0 || allowed[from]);
    if (may_stay && (chosen < 0 || stays - best <= margin + n->c->tie * before)) {
        chosen = from;
        best_joined = stays_joined;
    }
    if (chosen < 0) return -1;
    *total += best_joined - n->t->costs[chosen];
    n->t->costs[chosen] = best_joined;
    enter(n, m, chosen);
    return chosen;
}

/* Offer devices in turn the server that is best; `server` and `placed` are changed. */
void relocate(const Tables *t, const Constants *c, int64_t B, int64_t M, int64_t E, int64_t turns,
              int64_t *server, uint8_t *placed, const int64_t *order, const uint8_t *allowed,
              float harm, float margin) {
    Network local = network_of(t, c, B, M, E), *n = &local;
    for (n->b = 0; n->b < B; n->b++) {
        int64_t *at = server + n->b * M;
        uint8_t *on = placed + n->b * M;
        float total = settle_and_price(n, at, on);
        for (int64_t turn = 0; turn < turns; turn++) {
            const int64_t m = order[n->b * turns + turn];
            if (!t->has[n->b * M + m]) continue;
            const uint8_t *may = allowed + (n->b * M + m) * E;
            const int64_t chosen = turn_of(n, m, on[m] ? at[m] : -1, may, harm, margin, &total);
            if (chosen < 0) continue;
            at[m] = chosen;
            on[m] = 1;
        }
    }
}

/* Let each device in turn change places with the first one behind it where the total falls. */
void swap(const Tables *t, const Constants *c, int64_t B, int64_t M, int64_t E, int64_t *server,
          const int64_t *order, const uint8_t *allowed) {
    Network local = network_of(t, c, B, M, E), *n = &local;
    for (n->b = 0; n->b < B; n->b++) {
        int64_t *at = server + n->b * M;
        const uint8_t *has = t->has + n->b * M, *may = allowed + n->b * M * E;
        const int64_t *turn = order + n->b * M;
        float total = settle_and_price(n, at, has);
        for (int64_t first = 0; first < M; first++)
            for (int64_t second = first + 1; second < M; second++) {
                const int64_t i = turn[first], j = turn[second], a = at[i], z = at[j];
                if (!has[i] || !has[j] || a == z || !may[i * E + z] || !may[j * E + a]) continue;
                const float one = price_set(n, a, i, j, 0), two = price_set(n, z, j, i, 0);
                const float gain = t->costs[a] + t->costs[z] - one - two;
                if (gain <= c->tie * total) continue;
                leave(n, i, a), leave(n, j, z), enter(n, j, a), enter(n, i, z);
                at[i] = z, at[j] = a;
                t->costs[a] = one, t->costs[z] = two, total -= gain;
                break;
            }
    }
}
