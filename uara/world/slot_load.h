/* The start of a compiled slot: inputs of a tile, side by side and padded. */
#ifndef UARA_SLOT_LOAD_H
#define UARA_SLOT_LOAD_H

#include "slot_tile.h"

static void load_row(const Tile *t, int which, const float *from, float padding) {
    float *restrict to = LANE(which);
    memcpy(to, from + t->device, (size_t)t->count * sizeof(float));
    for (int64_t m = t->count; m < t->width; m++) to[m] = padding;
}

static void load_rows(const Tile *t) {
    const Inputs *in = t->in;
    load_row(t, HERTZ, in->bandwidth, 1.0f);
    load_row(t, WATT, in->power, 0.0f);
    load_row(t, WAS_ARRIVED, in->arrived, 0.0f);
    load_row(t, BITS, in->upload_bits, 0.0f);
    load_row(t, KV, in->kv, 0.0f);
    load_row(t, SO_FAR, in->tokens, 0.0f);
    load_row(t, WAS_ACCEPTED, in->accepted, 0.0f);
    load_row(t, WAS_TESTED, in->tested, 0.0f);
    load_row(t, WAS_TTFT, in->ttft, 0.0f);
    load_row(t, PROMPT_IN, in->prompt, 0.0f);
    load_row(t, PHOTO, in->attachment, 0.0f);
    load_row(t, LENGTH, in->output, 0.0f);
    load_row(t, ALPHA, in->acceptance, 0.0f);
    load_row(t, SINCE, in->arrival, 0.0f);
    load_row(t, DRAFT_TIME, in->draft_time, 0.0f);
    load_row(t, DRAFT_POWER, in->draft_power, 0.0f);
    if (in->battery) load_row(t, BATTERY + BATTERY_LEFT, in->battery, 0.0f);
}

/* What lies in other types, and what differs between the networks of the tile. */
static void load(const Tile *t) {
    const Inputs *in = t->in;
    const int64_t M = t->M, E = t->E, count = t->count;
    const int64_t *restrict to_server = in->to_server + t->device;
    const int64_t *restrict server = in->server + t->device;
    const int64_t *restrict length = in->draft_length + t->device;
    const int64_t *restrict was_finished = in->finished + t->device;
    const uint8_t *restrict active = in->active + t->device;
    float *restrict gain = LANE(GAIN), *restrict gamma = LANE(GAMMA), *restrict has = LANE(HAS);
    float *restrict finished = LANE(WAS_FINISHED), *restrict moved = LANE(IS_MOVED);
    float *restrict fresh = LANE(FRESH), *restrict slots = LANE(SLOT);
    const float drafts = t->c->drafts;
    load_rows(t);
#pragma omp simd
    for (int64_t m = 0; m < count; m++) {
        gamma[m] = (float)(int32_t)length[m] * drafts;
        finished[m] = (float)(int32_t)was_finished[m];
        has[m] = (float)active[m];
        moved[m] = to_server[m] != server[m] ? has[m] : 0.0f;
    }
    for (int64_t n = 0; n < t->networks; n++) {
        const int64_t b = t->network + n, slot = in->slot[b], at = n * M;
        const float *restrict table = in->gain + in->gain_row[b] * M * E;
        for (int64_t m = 0; m < M; m++) {
            t->chosen[at + m] = (int32_t)(to_server[at + m] + n * E);
            gain[at + m] = table[m * E + to_server[at + m]];
            slots[at + m] = (float)slot;
        }
        if (slot < t->T)
            memcpy(fresh + at, in->arrivals + (b * t->T + slot) * M, (size_t)M * sizeof(float));
        else
            memset(fresh + at, 0, (size_t)M * sizeof(float));
    }
    for (int64_t m = count; m < t->width; m++) {
        t->chosen[m] = 0;
        gain[m] = 1e-12f;
        gamma[m] = finished[m] = has[m] = moved[m] = fresh[m] = slots[m] = 0.0f;
    }
}

#endif
