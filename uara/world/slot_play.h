/* What devices do in a compiled slot: uara/world/slot.py, uara/world/batteries.py. */
#ifndef UARA_SLOT_PLAY_H
#define UARA_SLOT_PLAY_H

#include "slot_tile.h"

/* Upload, prefill, decoding. */
static void work(const Tile *t) {
    const float slot_s = t->c->slot_s;
    const float *restrict has = LANE(HAS), *restrict bits = LANE(BITS), *restrict up = LANE(UP);
    const float *restrict missing = LANE(MISSING), *restrict rate = LANE(PREFILL_RATE);
    const float *restrict round = LANE(ROUND), *restrict per_round = LANE(PER_ROUND);
    const float *restrict length = LANE(LENGTH), *restrict so_far = LANE(SO_FAR);
    const float *restrict draft_bits = LANE(DRAFT_BITS), *restrict verdict = LANE(VERDICT_BITS);
    const float *restrict gamma = LANE(GAMMA), *restrict watt = LANE(WATT);
    const float *restrict draft_time = LANE(DRAFT_TIME), *restrict draft_power = LANE(DRAFT_POWER);
    float *restrict committed = LANE(OUT + COMMITTED), *restrict energy = LANE(OUT + ENERGY);
    float *restrict up_bits = LANE(OUT + UPLINK_BITS), *restrict down_bits = LANE(OUT + DOWNLINK_BITS);
    float *restrict uploading = LANE(TIME_UP), *restrict prefilling = LANE(TIME_PREFILL);
    float *restrict decoding = LANE(TIME_DECODE), *restrict finishes = LANE(FINISHES);
    float *restrict first_token = LANE(FIRST_TOKEN);
#pragma omp simd
    for (int64_t m = 0; m < t->width; m++) {
        const float is_active = has[m], time_up = at_most(bits[m] / up[m], slot_s) * is_active;
        float left = slot_s * is_active - time_up;
        const float time_prefill = at_most(missing[m] / rate[m], left);
        left -= time_prefill;
        const float tpot = round[m] / per_round[m], output_left = length[m] - so_far[m];
        const float decode_s = output_left * tpot, time_decode = at_most(decode_s, left);
        const float ends = decode_s <= left ? is_active : 0.0f;
        const float rounds = time_decode / round[m];
        const float airtime = time_up + rounds * (draft_bits[m] / up[m]);
        const float drafting = rounds * gamma[m] * draft_time[m];
        uploading[m] = time_up;
        prefilling[m] = time_prefill;
        decoding[m] = time_decode;
        first_token[m] = left > 0.0f ? is_active : 0.0f;
        finishes[m] = ends;
        committed[m] = ends > 0.0f ? output_left : time_decode / tpot * is_active;
        energy[m] = airtime * watt[m] * t->c->inverse_efficiency + drafting * draft_power[m];
        up_bits[m] = time_up * up[m] + rounds * draft_bits[m];
        down_bits[m] = rounds * verdict[m];
    }
}

/* Take the slot's joules; a device that runs empty does a share of its work and dies. */
static void drain(const Tile *t) {
    const float idle_j = t->c->idle_j;
    float *restrict committed = LANE(OUT + COMMITTED), *restrict energy = LANE(OUT + ENERGY);
    float *restrict up_bits = LANE(OUT + UPLINK_BITS), *restrict down_bits = LANE(OUT + DOWNLINK_BITS);
    float *restrict battery = LANE(BATTERY + BATTERY_LEFT), *restrict lives = LANE(LIVES);
    float *restrict share = LANE(BATTERY + BATTERY_SHARE), *restrict finishes = LANE(FINISHES);
#pragma omp simd
    for (int64_t m = 0; m < t->width; m++) {
        const float left = battery[m], alive = left > 0.0f ? 1.0f : 0.0f;
        const float need = (energy[m] + idle_j) * alive, spent = at_most(need, left);
        const float done = need > 0.0f ? spent / at_least(need, 1e-30f) : 1.0f;
        const float survives = need >= left ? 1.0f - alive : 1.0f;
        share[m] = alive > 0.0f ? spent / at_least(left, 1e-30f) : 0.0f;
        battery[m] = need >= left ? 0.0f : left - spent;
        lives[m] = survives;
        energy[m] = spent;
        finishes[m] *= survives;
        committed[m] *= done;
        up_bits[m] *= done;
        down_bits[m] *= done;
    }
}

/* What is told of requests that finish. */
static void tell_finished(const Tile *t) {
    const float slot_s = t->c->slot_s;
    const int32_t *restrict server = t->chosen;
    const float *restrict token = t->in->token + t->server, *restrict rate = LANE(PREFILL_RATE);
    const float *restrict slot = LANE(SLOT), *restrict since = LANE(SINCE), *restrict has = LANE(HAS);
    const float *restrict uploading = LANE(TIME_UP), *restrict prefilling = LANE(TIME_PREFILL);
    const float *restrict decoding = LANE(TIME_DECODE), *restrict finishes = LANE(FINISHES);
    const float *restrict round = LANE(ROUND), *restrict length = LANE(LENGTH);
    float *restrict first_token = LANE(FIRST_TOKEN), *restrict before = LANE(WAS_TTFT);
    float *restrict e2e = LANE(OUT + E2E), *restrict ttft = LANE(OUT + FINISHED_TTFT);
    float *restrict tokens = LANE(OUT + FINISHED_TOKENS), *restrict saved = LANE(SAVED);
    float *restrict prefill_work = LANE(PREFILL_WORK);
#pragma omp simd
    for (int64_t m = 0; m < t->width; m++) {
        const float busy_s = uploading[m] + prefilling[m], ends = finishes[m];
        const float age = (slot[m] * slot_s - since[m]) * has[m] + busy_s;
        const float end_s = (age + decoding[m]) * ends;
        const float first_s =
            before[m] > LARGE && first_token[m] > 0.0f ? age + round[m] : before[m];
        first_token[m] = first_s;
        e2e[m] = end_s;
        ttft[m] = ends > 0.0f ? at_most(first_s, end_s) : 0.0f;
        tokens[m] = length[m] * ends;
        saved[m] = (slot_s - (busy_s + decoding[m])) * ends;
        prefill_work[m] = prefilling[m] * rate[m] * token[server[m]];
    }
}

/* The progress of requests that go on. */
static void carry_on(const Tile *t) {
    const Constants *c = t->c;
    const float *restrict has = LANE(HAS), *restrict bits = LANE(BITS), *restrict up = LANE(UP);
    const float *restrict uploading = LANE(TIME_UP), *restrict prefilling = LANE(TIME_PREFILL);
    const float *restrict rate = LANE(PREFILL_RATE), *restrict missing = LANE(MISSING);
    const float *restrict done = LANE(OUT + COMMITTED), *restrict per_round = LANE(PER_ROUND);
    const float *restrict accepted = LANE(WAS_ACCEPTED), *restrict tested = LANE(WAS_TESTED);
    const float *restrict gamma = LANE(GAMMA), *restrict alpha = LANE(ALPHA);
    const float *restrict finishes = LANE(FINISHES), *restrict lives = LANE(LIVES);
    const float *restrict first_token = LANE(FIRST_TOKEN), *restrict so_far = LANE(SO_FAR);
    const float *restrict context = LANE(CONTEXT), *restrict prompt = LANE(PROMPT_IN);
    float *restrict keep = LANE(KEEP), *restrict next_bits = LANE(NEXT + UPLOAD_BITS);
    float *restrict next_kv = LANE(NEXT + KV_TOKENS), *restrict next = LANE(NEXT + TOKENS);
    float *restrict next_accepted = LANE(NEXT + ACCEPTED), *restrict next_ttft = LANE(NEXT + TTFT);
    float *restrict next_tested = LANE(NEXT + TESTED);
    const float has_batteries = t->in->battery ? 1.0f : 0.0f;
#pragma omp simd
    for (int64_t m = 0; m < t->width; m++) {
        const float survives = has_batteries > 0.0f ? lives[m] : 1.0f;
        const float goes_on = (has[m] - finishes[m]) * survives;
        const float is_sent = bits[m] / up[m] <= c->slot_s ? 1.0f : 0.0f;
        const float unsent = at_least(bits[m] - uploading[m] * up[m], 0.0f);
        const float rest = is_sent > 0.0f ? 0.0f : unsent, read = prefilling[m] * rate[m];
        const float rounds = done[m] / per_round[m];
        const float gained = gamma[m] > 0.0f ? rounds * (per_round[m] - 1.0f) : 0.0f;
        keep[m] = goes_on;
        next_bits[m] = rest * goes_on;
        next[m] = (so_far[m] + done[m]) * goes_on;
        next_accepted[m] = (accepted[m] + gained) * goes_on;
        next_tested[m] = (tested[m] + gained / at_least(alpha[m], 1e-6f)) * goes_on;
        next_ttft[m] = goes_on > 0.0f ? first_token[m] : c->infinity;
        const float is_prefilled = read >= missing[m] * (1.0f - 1e-6f) ? 1.0f : 0.0f;
        /* Where it is all there, the next loop writes the context: read back from memory, so that
         * it is the same sum, to the last bit, that asks later whether anything is missing. */
        const float partial = (context[m] - missing[m] + read) * goes_on;
        next_kv[m] = is_prefilled > 0.0f && rest <= 0.0f ? -1.0f : partial;
    }
#pragma omp simd
    for (int64_t m = 0; m < t->width; m++) {
        const float all = keep[m] > 0.0f ? prompt[m] + next[m] : 0.0f;
        next_kv[m] = next_kv[m] < -0.5f ? all : next_kv[m];
    }
}

static void play(const Tile *t) {
    work(t);
    if (t->in->battery) drain(t);
    tell_finished(t);
    carry_on(t);
}

#endif
