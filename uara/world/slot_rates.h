/* Rates of the chosen links in a compiled slot: uara/prediction.py and uara/radio/interference.py,
 * each server with a band of its own or all of them in one. */
#ifndef UARA_SLOT_RATES_H
#define UARA_SLOT_RATES_H

#include "slot_tile.h"

static inline __attribute__((always_inline)) void find_rates_of(const Tile *t, const int is_mcs) {
    const Inputs *in = t->in;
    const Constants *c = t->c;
    const Link *link = &c->link;
    const int32_t *restrict server = t->chosen;
    const float *restrict gain = LANE(GAIN), *restrict hertz = LANE(HERTZ);
    const float *restrict watt = LANE(WATT), *restrict users = AT(USERS);
    const float *restrict up_noise = LANE(UPLINK_NOISE), *restrict down_noise = LANE(DOWNLINK_NOISE);
    const float *restrict down_hz = in->downlink_hz + t->server;
    const float *restrict down_w = in->downlink_power + t->server;
    float *restrict up = LANE(UP), *restrict down = LANE(DOWN);
#pragma omp simd
    for (int64_t m = 0; m < t->width; m++) {
        const int32_t s = server[m];
        const float up_sinr = gain[m] * watt[m] / (up_noise[m] * at_least(hertz[m], 1e-3f));
        up[m] = hertz[m] * efficiency_of(up_sinr, link, in->uplink_table, is_mcs);
        up[m] = at_least(up[m], c->rate_min);
        const float share = 1.0f / at_least(users[s], 1.0f), hz = down_hz[s] * share;
        const float down_sinr =
            gain[m] * (down_w[s] * share) / (down_noise[m] * at_least(hz, 1e-3f));
        down[m] = hz * efficiency_of(down_sinr, link, in->downlink_table, is_mcs);
        down[m] = at_least(down[m], c->rate_min);
    }
}

static void find_rates(const Tile *t) {
    if (t->c->link.is_mcs > 0.0f)
        find_rates_of(t, 1);
    else
        find_rates_of(t, 0);
}

/* The share of time in which devices and servers transmit at these rates, in rounds that wait for
 * nobody; `weight` of it beside what is there already. */
static void find_activity(const Tile *t, float weight) {
    const int32_t *restrict server = t->chosen;
    const float *restrict fixed = t->in->fixed + t->server, *restrict rtt = t->in->rtt + t->server;
    const float *restrict own = LANE(OWN), *restrict gamma = LANE(GAMMA), *restrict has = LANE(HAS);
    const float *restrict draft_bits = LANE(DRAFT_BITS), *restrict verdict = LANE(VERDICT_BITS);
    const float *restrict draft_time = LANE(DRAFT_TIME), *restrict decodes = LANE(DECODES);
    const float *restrict up = LANE(UP), *restrict down = LANE(DOWN), *restrict bits = LANE(BITS);
    const float *restrict users = AT(USERS);
    float *restrict sends = LANE(SENDS), *restrict receives = LANE(RECEIVES);
#pragma omp simd
    for (int64_t m = 0; m < t->width; m++) {
        const int32_t s = server[m];
        const float up_s = draft_bits[m] / up[m], down_s = verdict[m] / down[m];
        const float away_s = gamma[m] * draft_time[m] + up_s + down_s + rtt[s];
        const float round_s = fixed[s] + own[m] + (gamma[m] > 0.0f ? away_s : 0.0f);
        const float drafting = at_most(up_s / round_s, 1.0f) * decodes[m];
        const float is_sending = bits[m] > 0.0f ? has[m] : drafting;
        const float share = 1.0f / at_least(users[s], 1.0f);
        receives[m] = at_most(down_s / round_s, 1.0f) * decodes[m] * share;
        sends[m] += weight * (is_sending - sends[m]);
    }
    float *restrict fresh = AT(SUM_LOG), *restrict activity = AT(SERVER_SENDS);
    sum_by_server(t, receives, receives, fresh, AT(SUM_WORK));
    for (int64_t e = 0; e < t->servers; e++) activity[e] += weight * (fresh[e] - activity[e]);
}

/* What one network's links receive from each other, on top of the noise. */
static void find_interference(const Tile *t, int64_t network) {
    const Inputs *in = t->in;
    const int64_t M = t->M, E = t->E, first = network * M, at = network * E, s0 = t->server + at;
    const float *restrict gain = in->gain + in->gain_row[t->network + network] * M * E;
    const int32_t *restrict server = t->chosen + first;
    const float *restrict watt = LANE(WATT) + first, *restrict sends = LANE(SENDS) + first;
    const float *restrict activity = AT(SERVER_SENDS) + at;
    float *restrict heard = AT(HEARD) + at, *restrict density = AT(DENSITY) + at;
    float *restrict up_noise = LANE(UPLINK_NOISE) + first;
    float *restrict down_noise = LANE(DOWNLINK_NOISE) + first;
    for (int64_t e = 0; e < E; e++) {
        heard[e] = t->c->uplink_noise;
        density[e] = in->downlink_power[s0 + e] * activity[e] / in->downlink_hz[s0 + e];
    }
    for (int64_t m = 0; m < M; m++) {
        const int32_t own = server[m] - (int32_t)at;
        const float sent = watt[m] * sends[m] / in->uplink_hz[s0 + own];
        float received = 0.0f;
#pragma omp simd reduction(+ : received)
        for (int32_t e = 0; e < (int32_t)E; e++) {
            const float other = e != own ? gain[m * E + e] : 0.0f;
            heard[e] += sent * other;
            received += density[e] * other;
        }
        down_noise[m] = t->c->downlink_noise + received;
    }
    for (int64_t m = 0; m < M; m++) up_noise[m] = heard[server[m] - (int32_t)at];
}

/* Rates decide how long everybody transmits, and that decides the interference: a few damped
 * passes, from links that nobody disturbs. */
static void settle_rates(const Tile *t) {
    float *restrict up_noise = LANE(UPLINK_NOISE), *restrict down_noise = LANE(DOWNLINK_NOISE);
    for (int64_t m = 0; m < t->width; m++) {
        up_noise[m] = t->c->uplink_noise;
        down_noise[m] = t->c->downlink_noise;
    }
    find_rates(t);
    if (t->c->activity_passes <= 0.0f) return;
    memset(LANE(SENDS), 0, (size_t)t->width * sizeof(float));
    memset(AT(SERVER_SENDS), 0, (size_t)t->servers * sizeof(float));
    for (int pass = 0; pass < (int)t->c->activity_passes; pass++) {
        find_activity(t, pass == 0 ? 1.0f : 0.5f);
        for (int64_t n = 0; n < t->networks; n++) find_interference(t, n);
        find_rates(t);
    }
}

#endif
