/* What requests ask of servers in a compiled slot, and how they share them: uara/prediction.py
 * (horizon "slot") and uara/serving/. */
#ifndef UARA_SLOT_SERVING_H
#define UARA_SLOT_SERVING_H

#include "slot_rates.h"

/* Caches, and who decodes or queues for prefill. */
static void find_queues(const Tile *t) {
    const float *restrict has = LANE(HAS), *restrict bits = LANE(BITS);
    const float *restrict prompt = LANE(PROMPT_IN), *restrict so_far = LANE(SO_FAR);
    const float *restrict kv = LANE(KV), *restrict moved = LANE(IS_MOVED);
    float *restrict missing = LANE(MISSING), *restrict context = LANE(CONTEXT);
    float *restrict decodes = LANE(DECODES), *restrict queues = LANE(QUEUES);
#pragma omp simd
    for (int64_t m = 0; m < t->width; m++) {
        context[m] = prompt[m] + so_far[m];
        const float lacking = at_least(context[m] - (moved[m] > 0.0f ? 0.0f : kv[m]), 0.0f);
        const float sent = bits[m] <= 0.0f ? has[m] : 0.0f;
        missing[m] = lacking;
        decodes[m] = lacking <= 0.0f ? sent : 0.0f;
        queues[m] = lacking > 0.0f ? sent : 0.0f;
    }
    sum_by_server(t, has, queues, AT(USERS), AT(QUEUE));
}

/* Payloads of a round, its tokens, and what it adds to a pass. */
static void find_payloads(const Tile *t) {
    const Constants *c = t->c;
    const int32_t *restrict server = t->chosen;
    const float *restrict row = t->in->row + t->server, *restrict token = t->in->token + t->server;
    const float *restrict cached = t->in->cached + t->server;
    const float *restrict alpha = LANE(ALPHA), *restrict gamma = LANE(GAMMA);
    const float *restrict context = LANE(CONTEXT);
    float *restrict draft_bits = LANE(DRAFT_BITS), *restrict verdict_bits = LANE(VERDICT_BITS);
    float *restrict per_round = LANE(PER_ROUND), *restrict own = LANE(OWN);
#pragma omp simd
    for (int64_t m = 0; m < t->width; m++) {
        const int32_t s = server[m];
        const float g = gamma[m], a = alpha[m], drafted = g > 0.0f ? 1.0f : 0.0f;
        const float survives = exp_of(g * log_of(at_least(a, 1e-30f)));
        /* arXiv 2211.17192 eq. 1 and its limit. */
        const float geometric =
            a > 1.0f - 1e-5f ? g + 1.0f : (1.0f - survives * a) / at_least(1.0f - a, 1e-6f);
        per_round[m] = drafted > 0.0f ? at_least(geometric, 1e-6f) : 1.0f;
        const float rejection = c->verdict_rejected_bits - c->verdict_accepted_bits;
        verdict_bits[m] = drafted > 0.0f
                              ? c->verdict_accepted_bits + rejection * (1.0f - survives)
                              : c->token_bits;
        const float fields = field_bytes(g * c->id_bytes) + field_bytes(g * c->row_bytes);
        draft_bits[m] = drafted * (c->draft_base_bits + 8.0f * fields);
        own[m] = row[s] + (g + 1.0f) * token[s] + context[m] * cached[s];
    }
}

static void find_thinking(const Tile *t) {
    const int32_t *restrict server = t->chosen;
    const float *restrict rtt = t->in->rtt + t->server, *restrict gamma = LANE(GAMMA);
    const float *restrict draft_time = LANE(DRAFT_TIME), *restrict draft_bits = LANE(DRAFT_BITS);
    const float *restrict verdict_bits = LANE(VERDICT_BITS);
    const float *restrict up = LANE(UP), *restrict down = LANE(DOWN);
    float *restrict think = LANE(THINK);
#pragma omp simd
    for (int64_t m = 0; m < t->width; m++) {
        const float away_s = gamma[m] * draft_time[m] + draft_bits[m] / up[m] +
                             verdict_bits[m] / down[m] + rtt[server[m]];
        think[m] = gamma[m] > 0.0f ? away_s : 0.0f;
    }
}

/* Passes of servers with nothing but foreign rows and chunks, and of each device alone. */
static void start_batching(const Tile *t) {
    const Inputs *in = t->in;
    const int32_t *restrict server = t->chosen;
    const float *restrict think = LANE(THINK), *restrict decodes = LANE(DECODES);
    const float *restrict queues = LANE(QUEUES);
    float *restrict own = LANE(OWN), *restrict alone = LANE(ALONE), *restrict wait = LANE(WAIT);
    float *restrict log_idle = LANE(LOG_IDLE), *restrict work = LANE(WORK);
    float *restrict queue = AT(QUEUE), *restrict base = AT(BASE), *restrict chunk = AT(CHUNK);
    float *restrict free_idle = AT(IDLE_FREE);
    for (int64_t e = 0; e < t->servers; e++) {
        const int64_t s = t->server + e;
        queue[e] += in->foreign_tokens[s] > 0.0f ? 1.0f : 0.0f;
        chunk[e] = t->c->chunk_tokens * in->token[s];
        free_idle[e] = in->foreign_rows[s] <= 0.0f ? 1.0f : 0.0f;
        base[e] = in->fixed[s] + (queue[e] > 0.0f ? chunk[e] : 0.0f) +
                  in->foreign_rows[s] * (in->row[s] + in->token[s]);
    }
#pragma omp simd
    for (int64_t m = 0; m < t->width; m++) {
        const int32_t s = server[m];
        own[m] -= queues[m] > 0.0f && queue[s] <= 1.0f ? chunk[s] : 0.0f;
        alone[m] = base[s] + own[m];
        wait[m] = 0.0f;
        const float presence = decodes[m] * alone[m] / (think[m] + alone[m]);
        log_idle[m] = log_of(1.0f - at_most(presence, 1.0f - 1e-6f));
        work[m] = presence * own[m];
    }
    sum_by_server(t, log_idle, work, AT(SUM_LOG), AT(SUM_WORK));
}

/* The damped fixed point of uara/serving/batching.py, and what it makes of rounds and prefills. */
static void solve_batching(const Tile *t) {
    const Constants *c = t->c;
    const int32_t *restrict server = t->chosen;
    const float *restrict think = LANE(THINK), *restrict decodes = LANE(DECODES);
    const float *restrict own = LANE(OWN), *restrict alone = LANE(ALONE);
    const float *restrict queues = LANE(QUEUES), *restrict queue = AT(QUEUE);
    float *restrict wait = LANE(WAIT), *restrict log_idle = LANE(LOG_IDLE);
    float *restrict work = LANE(WORK), *restrict round = LANE(ROUND);
    float *restrict rate = LANE(PREFILL_RATE);
    const float *restrict sum_log = AT(SUM_LOG), *restrict sum_work = AT(SUM_WORK);
    const float *restrict free_idle = AT(IDLE_FREE), *restrict chunk = AT(CHUNK);
    float *restrict server_rate = AT(RATE), *restrict busy_share = AT(BUSY_SHARE);
    start_batching(t);
    for (int turn = 0; turn < (int)c->iterations; turn++) {
#pragma omp simd
        for (int64_t m = 0; m < t->width; m++) {
            const int32_t s = server[m];
            const float busy = 1.0f - free_idle[s] * exp_of(sum_log[s] - log_idle[m]);
            const float pass_s = alone[m] + (sum_work[s] - work[m]);
            const float z = think[m] / pass_s + 0.75f;
            const float residual = 0.25f + fabsf(z - truncf(z) - 0.5f);
            const float waits = think[m] > 0.0f ? 1.0f : 0.0f;
            const float wait_s = 0.5f * (wait[m] + waits * busy * residual * pass_s);
            const float cycle = think[m] + wait_s + pass_s;
            const float presence = decodes[m] * pass_s / cycle;
            wait[m] = wait_s;
            round[m] = cycle;
            log_idle[m] = log_of(1.0f - at_most(presence, 1.0f - 1e-6f));
            work[m] = presence * own[m];
        }
        sum_by_server(t, log_idle, work, AT(SUM_LOG), AT(SUM_WORK));
    }
    for (int64_t e = 0; e < t->servers; e++) {
        busy_share[e] = 1.0f - free_idle[e] * exp_of(sum_log[e]);
        server_rate[e] =
            c->chunk_tokens / (chunk[e] + busy_share[e] * t->in->fixed[t->server + e]);
    }
#pragma omp simd
    for (int64_t m = 0; m < t->width; m++) {
        const int32_t s = server[m];
        rate[m] = server_rate[s] / (queue[s] - queues[m] + 1.0f);
    }
}

#endif
