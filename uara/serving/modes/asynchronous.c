/* Means of asynchronous speculation for many requests, as asynchronous.py computes them in torch.

   A tile of requests goes through its drafts side by side; comments are in the torch form. */

#include <math.h>
#include <stdint.h>

/* Which pass a draft meets hangs on comparisons: sums and divisions round as torch's do. */
#pragma GCC optimize("no-unsafe-math-optimizations,no-trapping-math")

#define TILE 16
#define BLOCKS 8
#define REPEATED 4
#define MOST_PATHS 4
#define EACH _Pragma("GCC ivdep") for (int i = 0; i < TILE; i++)

typedef float Lane[TILE];

enum { DRAFT, UPLINK, WAIT, VERIFY, DOWNLINK, RTT, ALPHA, GAMMA, SURVIVES, INPUTS };
enum { TIME, PASSES, NEW_TOKENS, AHEAD, DRAFTS, OUTPUTS };

typedef struct {
    Lane in[INPUTS];
    Lane back, under_way, relative;
} Parts;

typedef struct {
    Lane reached, draft, ready, leaves, tested, from, to, rides;
} Leg;

static inline float larger(float a, float b) { return a > b ? a : b; }
static inline float smaller(float a, float b) { return a < b ? a : b; }

static Lane long_ago; /* before anything can be ready */

static void start(const Parts *p, float row_scatter, Leg *leg) {
    EACH {
        float row = p->in[VERIFY][i] * (1 + row_scatter);
        leg->reached[i] = 1;
        leg->draft[i] = p->in[DRAFT][i];
        leg->ready[i] = p->back[i] + p->under_way[i];
        leg->leaves[i] = p->back[i];
        leg->tested[i] = row;
        leg->from[i] = -1;
        leg->to[i] = row;
        leg->rides[i] = 0;
    }
}

/* Follow the drafts behind legs[0]; scatter holds two factors per draft. */
static void follow(const Parts *p, const float *scatter, int blocks, int64_t window, Leg *legs) {
    for (int block = 0; block < blocks; block++) {
        const Leg *last = legs + block;
        Leg *leg = legs + block + 1;
        const float *freed = block >= window ? legs[block + 1 - window].to : long_ago;
        float draft_scatter = scatter[2 * block], verify_scatter = scatter[2 * block + 1];
        EACH {
            float draft = p->in[DRAFT][i] * (1 + draft_scatter * p->relative[i]);
            float verify = p->in[VERIFY][i] * (1 + verify_scatter);
            float ready = larger(last->ready[i] + draft, freed[i] + p->back[i]);
            float leaves = larger(ready, last->leaves[i]) + p->in[UPLINK][i];
            float arrives = leaves + 0.5f * p->in[RTT][i];
            int rides = arrives <= last->from[i];
            float tested = larger(arrives, last->to[i]);
            float passes = larger((arrives - last->to[i]) / p->in[VERIFY][i], 0);
            float from = tested + 2 * p->in[WAIT][i] * (ceilf(passes) - passes);
            float to = rides ? last->to[i] : from + verify;
            leg->reached[i] = block ? last->reached[i] * p->in[SURVIVES][i] : last->reached[i];
            leg->draft[i] = draft;
            leg->ready[i] = ready;
            leg->leaves[i] = leaves;
            leg->tested[i] = rides ? to : tested;
            leg->from[i] = rides ? last->from[i] : from;
            leg->to[i] = to;
            leg->rides[i] = rides;
        }
    }
}

static void stale(const Parts *p, const Leg *legs, Lane out) {
    EACH {
        float alpha = p->in[ALPHA][i], survives = p->in[SURVIVES][i], reached = legs[0].reached[i];
        float uplink = p->in[UPLINK][i], back = p->back[i];
        float first = legs[1].leaves[i] - legs[0].tested[i] - back;
        float later = legs[1].leaves[i] - legs[0].to[i] - back;
        float held = reached * (1 - alpha) * larger(first < uplink ? first : 0, 0);
        held += reached * (alpha - survives) * larger(later < uplink ? later : 0, 0);
        out[i] = held / larger(1 - survives, 1e-6f);
    }
}

/* Add what one path brings to the sums over paths; legs[0] is the first draft. */
static void account(const Parts *p, const Leg *legs, int64_t window, Lane *sums) {
    Lane riders, time = {0}, resting = {0}, passes = {0}, fed = {0}, ahead = {0}, drafts = {0};
    Lane tail_passes = {0}, tail_fed = {0}, repeated = {0};
    EACH riders[i] = 1;
    for (int block = 0; block < BLOCKS; block++) {
        const Leg *leg = legs + block;
        float in_tail = block >= BLOCKS - REPEATED;
        EACH {
            float alpha = p->in[ALPHA][i], reached = leg->reached[i], back = p->back[i];
            float rest_from = leg->ready[i] + window * leg->draft[i] - back;
            float weights[2] = {reached * (1 - alpha), reached * (alpha - p->in[SURVIVES][i])};
            float ends[2] = {leg->tested[i], leg->to[i]}, most = window * leg->draft[i];
            riders[i] = leg->rides[i] != 0 ? riders[i] : reached * alpha;
            float own_pass = leg->rides[i] != 0 ? 0 : riders[i];
            passes[i] += own_pass;
            fed[i] += riders[i];
            tail_passes[i] += in_tail * own_pass;
            tail_fed[i] += in_tail * riders[i];
            repeated[i] += in_tail * reached;
            for (int k = 0; k < 2; k++) {
                time[i] += weights[k] * ends[k];
                resting[i] += ends[k] > rest_from ? weights[k] : 0;
                float more = smaller(ends[k] + back - leg->ready[i], most);
                float wasted = more < most ? p->under_way[i] : 0;
                ahead[i] += weights[k] * (more + wasted);
                float sent = more / larger(leg->draft[i], 1e-9f) - 0.5f;
                drafts[i] += weights[k] * smaller(larger(sent, 0), window - 1);
            }
        }
    }
    const Leg *end = legs + BLOCKS - 1;
    EACH {
        float survives = p->in[SURVIVES][i], rejected = 1 - survives;
        int is_late = legs[0].tested[i] > legs[0].leaves[i] + 0.5f * p->in[RTT][i];
        float saved = is_late ? 0 : p->under_way[i] * resting[i];
        float beyond = end->reached[i] * survives;
        float period = (end->to[i] - (end - REPEATED)->to[i]) / REPEATED;
        float share = beyond / larger(repeated[i] / REPEATED, 1e-20f);
        sums[TIME][i] += rejected * (time[i] + beyond * end->to[i] - saved) + beyond * period;
        sums[PASSES][i] += rejected + rejected * passes[i] + tail_passes[i] / REPEATED * share;
        sums[NEW_TOKENS][i] +=
            rejected + p->in[GAMMA][i] * (rejected * fed[i] + tail_fed[i] / REPEATED * share);
        sums[AHEAD][i] += rejected * ahead[i];
        sums[DRAFTS][i] += rejected * drafts[i];
    }
}

static void tile(const Parts *p, int64_t paths, int64_t window, const float *scatter, Lane *sums) {
    Leg legs[BLOCKS + 1];
    Lane held[MOST_PATHS], first = {0}, later = {0};
    const int columns = 2 * BLOCKS + 1;
    for (int64_t path = 0; path < paths; path++) {
        const float *row = scatter + path * columns;
        start(p, row[columns - 1], legs);
        follow(p, row, 2, window, legs);
        EACH {
            first[i] += legs[1].rides[i] != 0 ? 0 : legs[1].from[i] - legs[1].tested[i];
            later[i] += legs[2].rides[i] != 0 ? 0 : legs[2].from[i] - legs[2].tested[i];
            held[path][i] = 0;
        }
        if (window > 1) stale(p, legs + 1, held[path]);
    }
    for (int64_t path = 0; path < paths; path++) {
        const float *row = scatter + path * columns;
        start(p, row[columns - 1], legs);
        EACH {
            float survives = p->in[SURVIVES][i];
            float beyond = survives / larger(1 - survives, 1e-6f);
            float wait = (1 - p->in[ALPHA][i]) * (first[i] / paths + beyond * (later[i] / paths));
            legs[0].to[i] += wait;
            legs[0].leaves[i] += held[path][i];
        }
        follow(p, row, BLOCKS, window, legs);
        account(p, legs + 1, window, sums);
    }
}

/* Fill outputs (OUTPUTS, count) from inputs (INPUTS, count); at most MOST_PATHS paths. */
void epochs(int64_t count, int64_t paths, int64_t window, const float *scatter,
            const float *inputs, float *outputs) {
    EACH long_ago[i] = -1e30f;
    for (int64_t at = 0; at < count; at += TILE) {
        int64_t width = count - at < TILE ? count - at : TILE;
        Parts p;
        Lane sums[OUTPUTS] = {{0}};
        for (int k = 0; k < INPUTS; k++) {
            /* A tile that is not full repeats its last request. */
            EACH p.in[k][i] = inputs[k * count + at + (i < width ? i : width - 1)];
        }
        EACH {
            p.back[i] = p.in[DOWNLINK][i] + 0.5f * p.in[RTT][i];
            p.under_way[i] = 0.5f * p.in[DRAFT][i] / p.in[GAMMA][i];
            p.relative[i] = 1 / sqrtf(p.in[GAMMA][i]);
        }
        tile(&p, paths, window, scatter, sums);
        for (int k = 0; k < OUTPUTS; k++) {
            for (int i = 0; i < width; i++) outputs[k * count + at + i] = sums[k][i] / paths;
        }
    }
}
