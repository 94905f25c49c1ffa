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
#define SETS 8 /* priced together: what one waits for, others use */
#define INVERSE_LN2 1.44269504f

typedef struct {
    const float *pairs;   /* (PAIR_COLUMNS, B, E, M + 1), the last 0 */
    const float *devices; /* (DEVICE_COLUMNS, B, M + 1), the last 0 */
    const float *servers; /* (SERVER_COLUMNS, B, E) */
    const uint8_t *has;   /* (B, M) has a request */
    float *scratch;       /* (SETS, SCRATCH_COLUMNS, width) */
    int32_t *members;     /* (E, M) */
    int32_t *index;       /* (width,) */
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
enum { UPLOAD_BITS, DRAFT_BITS, ALL_BITS, VERDICT_BITS, DRAFT_S, ROUNDS, WEIGHT, EXISTS,
       DEVICE_COLUMNS };
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

/* The devices of server e, but for `without` and with `extra` (-1: nobody), which comes last. */
typedef struct {
    int64_t e, without, extra;
    int64_t total, width; /* how many there are, and padded */
    float *columns;       /* (SCRATCH_COLUMNS, width) */
    float product, work;  /* of the fixed point: chance that all are idle, mean work in a pass */
    float sum, own;       /* weighted remaining seconds, and those of `extra` */
} Set;

#define COLUMN(name) (s->columns + (name) * s->width)
#define OF_SERVER(name, e) (n->t->servers[((name) * n->B + n->b) * n->E + (e)])
#define OF_DEVICE(name) (n->t->devices + ((name) * n->B + n->b) * (n->M + 1))
#define OF_PAIR(name, e) (n->t->pairs + (((name) * n->B + n->b) * n->E + (e)) * (n->M + 1))

static inline float at_least(float x, float low) { return x < low ? low : x; }
static inline float at_most(float x, float high) { return x > high ? high : x; }

static inline float efficiency_of(float snr, float most) {
    return at_most(log1p_of(snr) * INVERSE_LN2, most);
}

/* Bring a set's columns together; lanes of padding read the zeros behind the last device. */
static void gather(const Network *n, Set *s) {
    const int32_t *list = n->t->members + s->e * n->M;
    const int64_t count = n->t->counts[s->e];
    int32_t *restrict index = n->t->index;
    for (int64_t i = 0; i < count; i++) index[i] = list[i];
    int64_t total = count;
    if (s->without >= 0) index[n->t->place[s->without]] = index[--total];
    if (s->extra >= 0) index[total++] = (int32_t)s->extra;
    s->total = total;
    s->width = (total + LANES - 1) / LANES * LANES;
    for (int64_t i = total; i < s->width; i++) index[i] = (int32_t)n->M;
    for (int k = 0; k < PAIR_COLUMNS; k++) {
        const float *restrict from = OF_PAIR(k, s->e);
        float *restrict to = COLUMN(S_SNR + k);
#pragma omp simd
        for (int64_t i = 0; i < s->width; i++) to[i] = from[index[i]];
    }
    for (int k = 0; k < DEVICE_COLUMNS; k++) {
        const float *restrict from = OF_DEVICE(k);
        float *restrict to = COLUMN(S_UPLOAD + k);
#pragma omp simd
        for (int64_t i = 0; i < s->width; i++) to[i] = from[index[i]];
    }
}

/* Split the band and find rates; leaves upload and think times. */
static void transmit(const Network *n, const Set *s) {
    const float band = OF_SERVER(BAND, s->e), rtt = OF_SERVER(RTT, s->e), count = (float)s->total;
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
    for (int64_t i = 0; i < s->width; i++) {
        const float efficiency = efficiency_of(snr[i] / at_least(share, 1.0f), most);
        const float root = sqrtf(all[i] / at_least(efficiency, 1e-3f));
        shares[i] = (is_equal > 0.0f ? 1.0f : root) * exists[i];
        sum += shares[i];
    }
    const float scale = band / at_least(sum, 1e-30f);
#pragma omp simd
    for (int64_t i = 0; i < s->width; i++) {
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
 * product here. This is its start, ... */
static void start_batch(const Network *n, Set *s) {
    const float base = OF_SERVER(BASE, s->e);
    const float *restrict own = COLUMN(S_OWN), *restrict think = COLUMN(S_THINK);
    const float *restrict exists = COLUMN(S_EXISTS);
    float *restrict pass = COLUMN(S_PASS), *restrict wait = COLUMN(S_WAIT);
    float *restrict presence = COLUMN(S_PRESENCE), *restrict idle = COLUMN(S_IDLE);
    float product = 1.0f, work = 0.0f;
#pragma omp simd reduction(* : product) reduction(+ : work)
    for (int64_t i = 0; i < s->width; i++) {
        pass[i] = base + own[i];
        wait[i] = 0.0f;
        presence[i] = exists[i] * pass[i] / (think[i] + pass[i]);
        idle[i] = 1.0f - at_most(presence[i], 1.0f - 1e-6f);
        product *= idle[i];
        work += presence[i] * own[i];
    }
    s->product = product;
    s->work = work;
}

/* ... and this one step. */
static void step_batch(const Network *n, Set *s) {
    const float base = OF_SERVER(BASE, s->e), is_free = OF_SERVER(IS_FREE, s->e);
    const float product = s->product, work = s->work;
    const float *restrict own = COLUMN(S_OWN), *restrict think = COLUMN(S_THINK);
    const float *restrict waits = COLUMN(S_WAITS), *restrict exists = COLUMN(S_EXISTS);
    float *restrict pass = COLUMN(S_PASS), *restrict wait = COLUMN(S_WAIT);
    float *restrict presence = COLUMN(S_PRESENCE), *restrict idle = COLUMN(S_IDLE);
    float next = 1.0f, next_work = 0.0f;
#pragma omp simd reduction(* : next) reduction(+ : next_work)
    for (int64_t i = 0; i < s->width; i++) {
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
    s->product = next;
    s->work = next_work;
}

/* Prefill, and everything together: remaining seconds into S_SECONDS. */
static void add_up(const Network *n, Set *s) {
    const float busy = 1.0f - s->product * OF_SERVER(IS_FREE, s->e);
    const float token = OF_SERVER(TOKEN_S, s->e), chunk = n->c->chunk_tokens;
    const float inverse_rate = (chunk * token + busy * OF_SERVER(FIXED, s->e)) / chunk;
    const float *restrict need = COLUMN(S_NEED), *restrict later = COLUMN(S_LATER);
    const float *restrict up = COLUMN(S_UP), *restrict rounds = COLUMN(S_ROUNDS);
    const float *restrict think = COLUMN(S_THINK), *restrict wait = COLUMN(S_WAIT);
    const float *restrict pass = COLUMN(S_PASS), *restrict weight = COLUMN(S_WEIGHT);
    float *restrict seconds = COLUMN(S_SECONDS);
    float queue = OF_SERVER(FOREIGN_TOKENS, s->e), sum = 0.0f;
#pragma omp simd reduction(+ : queue)
    for (int64_t i = 0; i < s->width; i++) queue += need[i];
#pragma omp simd reduction(+ : sum)
    for (int64_t i = 0; i < s->width; i++) {
        const float ahead = queue - need[i];
        const float prefill = need[i] > 0.0f ? (need[i] + 0.5f * ahead) * inverse_rate : 0.0f;
        const float lost = (need[i] > 0.0f ? 0.5f : 1.0f) * ahead * token;
        const float round = think[i] + wait[i] + pass[i];
        seconds[i] = up[i] + prefill + later[i] + lost + rounds[i] * round;
        sum += weight[i] * seconds[i];
    }
    s->sum = sum;
    s->own = seconds[s->total - 1];
}

/* Price up to SETS sets; those of nobody cost nothing. */
static void price_sets(const Network *n, Set *sets, int64_t count) {
    int64_t live = 0;
    Set *alive[SETS];
    for (int64_t k = 0; k < count; k++) {
        Set *s = sets + k;
        s->columns = n->t->scratch + k * SCRATCH_COLUMNS * n->width;
        gather(n, s);
        s->sum = s->own = 0.0f;
        if (s->total == 0) continue;
        transmit(n, s);
        start_batch(n, s);
        alive[live++] = s;
    }
    for (int turn = 0; turn < (int)n->c->iterations; turn++)
        for (int64_t k = 0; k < live; k++) step_batch(n, alive[k]);
    for (int64_t k = 0; k < live; k++) add_up(n, alive[k]);
}

static Set set_of(int64_t e, int64_t without, int64_t extra) {
    const Set s = {.e = e, .without = without, .extra = extra};
    return s;
}

static void enter(const Network *n, int64_t m, int64_t e) {
    n->t->place[m] = n->t->counts[e];
    n->t->members[e * n->M + n->t->counts[e]++] = (int32_t)m;
}

static void leave(const Network *n, int64_t m, int64_t e) {
    int32_t *list = n->t->members + e * n->M;
    const int32_t last = list[--n->t->counts[e]];
    const int64_t at = n->t->place[m];
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
    Set sets[SETS];
    float total = 0.0f;
    settle(n, server, placed);
    for (int64_t first = 0; first < n->E; first += SETS) {
        const int64_t count = n->E - first < SETS ? n->E - first : SETS;
        for (int64_t k = 0; k < count; k++) sets[k] = set_of(first + k, -1, -1);
        price_sets(n, sets, count);
        for (int64_t k = 0; k < count; k++) total += n->t->costs[first + k] = sets[k].sum;
    }
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
            Set set = set_of(e, -1, -1), *s = &set;
            price_sets(n, s, 1);
            const float *found = COLUMN(S_SECONDS);
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
            Set s = set_of(e, -1, m);
            price_sets(n, &s, 1);
            own[n->b * E + e] = s.own;
            others[n->b * E + e] = rest - t->costs[e] + s.sum - weight * s.own;
        }
    }
}

typedef struct {
    int64_t e;
    float score, sum;
} Offer;

/* Take the best of the allowed servers other than `from`, better than `best`. */
static Offer best_offer(const Network *n, int64_t m, int64_t from, const uint8_t *allowed, float harm) {
    const float weight = OF_DEVICE(WEIGHT)[m];
    Offer best = {-1, 0.0f, 0.0f};
    Set sets[SETS];
    int64_t count = 0;
    for (int64_t e = 0; e < n->E; e++) {
        if (allowed[e] && e != from) sets[count++] = set_of(e, -1, m);
        if (count < SETS && e < n->E - 1) continue;
        price_sets(n, sets, count);
        for (int64_t k = 0; k < count; k++) {
            const float mine = weight * sets[k].own;
            const float score = mine + harm * (sets[k].sum - n->t->costs[sets[k].e] - mine);
            if (best.e >= 0 && score >= best.score) continue;
            best = (Offer){sets[k].e, score, sets[k].sum};
        }
        count = 0;
    }
    return best;
}

/* One turn of `relocate`: returns the server that device m of network b ends on. */
static int64_t turn_of(const Network *n, int64_t m, int64_t from, const uint8_t *allowed, float harm,
                       float margin, float *total) {
    Offer taken = best_offer(n, m, from, allowed, harm);
    if (from >= 0) {
        Set sets[2] = {set_of(from, m, m), set_of(from, m, -1)};
        price_sets(n, sets, 2);
        const float mine = OF_DEVICE(WEIGHT)[m] * sets[0].own, rest = sets[1].sum;
        const float stays = mine + harm * (sets[0].sum - rest - mine);
        const float needed = margin + n->c->tie * *total;
        if (taken.e < 0 || (allowed[from] && stays - taken.score <= needed)) return from;
        leave(n, m, from);
        *total += rest - n->t->costs[from];
        n->t->costs[from] = rest;
    }
    if (taken.e < 0) return -1;
    *total += taken.sum - n->t->costs[taken.e];
    n->t->costs[taken.e] = taken.sum;
    enter(n, m, taken.e);
    return taken.e;
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

typedef struct {
    int64_t i, j; /* devices that would change places */
} Pair;

/* Take the first of some pairs that helps; returns whether one did. */
static int take_first(const Network *n, const Pair *pairs, int64_t count, int64_t *at, float *total) {
    Set sets[SETS];
    for (int64_t k = 0; k < count; k++) {
        sets[2 * k] = set_of(at[pairs[k].i], pairs[k].i, pairs[k].j);
        sets[2 * k + 1] = set_of(at[pairs[k].j], pairs[k].j, pairs[k].i);
    }
    price_sets(n, sets, 2 * count);
    for (int64_t k = 0; k < count; k++) {
        const Set *one = sets + 2 * k, *two = one + 1;
        const int64_t i = pairs[k].i, j = pairs[k].j;
        const float gain = n->t->costs[one->e] + n->t->costs[two->e] - one->sum - two->sum;
        if (gain <= n->c->tie * *total) continue;
        leave(n, i, one->e), leave(n, j, two->e), enter(n, j, one->e), enter(n, i, two->e);
        at[i] = two->e, at[j] = one->e;
        n->t->costs[one->e] = one->sum, n->t->costs[two->e] = two->sum, *total -= gain;
        return 1;
    }
    return 0;
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
        for (int64_t first = 0; first < M; first++) {
            const int64_t i = turn[first];
            Pair pairs[SETS / 2];
            int64_t count = 0;
            int helped = !has[i];
            for (int64_t second = first + 1; second < M && !helped; second++) {
                const int64_t j = turn[second];
                if (has[j] && at[i] != at[j] && may[i * E + at[j]] && may[j * E + at[i]])
                    pairs[count++] = (Pair){i, j};
                if (count < SETS / 2) continue;
                helped = take_first(n, pairs, count, at, &total);
                count = 0;
            }
            if (!helped && count > 0) take_first(n, pairs, count, at, &total);
        }
    }
}
