/* One slot of B networks in one pass: the arithmetic of uara/prediction.py (horizon "slot"),
 * uara/world/slot.py and uara/world/world.py, fused, for the worlds that native_slot.py admits.
 *
 * Shape legend: B networks, M devices, E servers, R requests of a device, T slots with arrivals.
 */
#include "slot_load.h"
#include "slot_play.h"
#include "slot_serving.h"
#include "slot_tile.h"

/* Count who comes and goes, and carry along what belongs to requests that go on. */
static void count_requests(const Tile *t) {
    const float *restrict keep = LANE(KEEP), *restrict ends = LANE(FINISHES);
    const float *restrict was_finished = LANE(WAS_FINISHED), *restrict fresh = LANE(FRESH);
    const float *restrict was_arrived = LANE(WAS_ARRIVED), *restrict prompt_in = LANE(PROMPT_IN);
    const float *restrict photo_in = LANE(PHOTO), *restrict length_in = LANE(LENGTH);
    const float *restrict alpha_in = LANE(ALPHA), *restrict since_in = LANE(SINCE);
    const float *restrict battery = LANE(BATTERY + BATTERY_LEFT);
    float *restrict failed = LANE(BATTERY + FAILED), *restrict starts = LANE(STARTS);
    float *restrict arrived = LANE(NEXT + ARRIVED), *restrict finished = LANE(GONE);
    float *restrict prompt = LANE(NEXT + PROMPT), *restrict photo = LANE(NEXT + ATTACHMENT);
    float *restrict length = LANE(NEXT + OUTPUT), *restrict alpha = LANE(NEXT + ACCEPTANCE);
    float *restrict since = LANE(NEXT + ARRIVAL), *restrict active = LANE(IS_ACTIVE);
    const float has_batteries = t->in->battery ? 1.0f : 0.0f;
#pragma omp simd
    for (int64_t m = 0; m < t->width; m++) {
        const float gone = was_finished[m] + ends[m], come = was_arrived[m] + fresh[m];
        const float is_dead = has_batteries > 0.0f && battery[m] <= 0.0f ? 1.0f : 0.0f;
        const float lost = (come - gone) * is_dead, goes_on = keep[m];
        const float waits = come > gone + lost ? 1.0f : 0.0f;
        failed[m] = lost;
        finished[m] = gone + lost;
        arrived[m] = come;
        starts[m] = waits * (1.0f - goes_on);
        active[m] = goes_on > 0.0f ? 1.0f : waits;
        prompt[m] = prompt_in[m] * goes_on;
        photo[m] = photo_in[m] * goes_on;
        length[m] = length_in[m] * goes_on;
        alpha[m] = alpha_in[m] * goes_on;
        since[m] = since_in[m] * goes_on;
    }
}

/* Look up the requests that start. */
static void admit(const Tile *t) {
    const Inputs *in = t->in;
    const int64_t *restrict task = in->task + t->device;
    const float *restrict keep = LANE(KEEP), *restrict starts = LANE(STARTS);
    const float *restrict finished = LANE(GONE);
    float *restrict prompt = LANE(NEXT + PROMPT), *restrict photo = LANE(NEXT + ATTACHMENT);
    float *restrict length = LANE(NEXT + OUTPUT), *restrict alpha = LANE(NEXT + ACCEPTANCE);
    float *restrict since = LANE(NEXT + ARRIVAL), *restrict bits = LANE(NEXT + UPLOAD_BITS);
    int32_t *restrict kind = t->kind;
#pragma omp simd
    for (int64_t m = 0; m < t->count; m++) kind[m] = keep[m] > 0.0f ? (int32_t)task[m] : 0;
    for (int64_t m = t->count; m < t->width; m++) kind[m] = 0;
    for (int64_t m = 0; m < t->count; m++) {
        if (starts[m] <= 0.0f) continue;
        const int64_t number = (int64_t)finished[m] < t->R - 1 ? (int64_t)finished[m] : t->R - 1;
        const int64_t i = (t->device + m) * t->R + number;
        kind[m] = (int32_t)in->table_task[i];
        prompt[m] = in->table_prompt[i];
        photo[m] = in->table_attachment[i];
        length[m] = in->table_output[i];
        alpha[m] = in->table_acceptance[i];
        since[m] = (float)in->table_arrival[i];
        const float ids = field_bytes(prompt[m] * t->c->id_bytes);
        bits[m] = t->c->prompt_base_bits + 8.0f * ids + photo[m];
    }
}

/* Describe the requests as controllers know them. */
static void describe(const Tile *t) {
    const Constants *c = t->c;
    const Inputs *in = t->in;
    const int32_t *restrict kind = t->kind;
    const float *restrict low = in->answer_low, *restrict mean = in->answer_mean;
    const float *restrict high = in->answer_high, *restrict known = in->task_acceptance;
    const float *restrict tokens = LANE(NEXT + TOKENS), *restrict accepted = LANE(NEXT + ACCEPTED);
    const float *restrict tested = LANE(NEXT + TESTED), *restrict since = LANE(NEXT + ARRIVAL);
    const float *restrict arrived = LANE(NEXT + ARRIVED), *restrict finished = LANE(GONE);
    const float *restrict active = LANE(IS_ACTIVE), *restrict slot = LANE(SLOT);
    float *restrict left = LANE(NEXT + REMAINING), *restrict estimate = LANE(NEXT + ESTIMATE);
    float *restrict age = LANE(NEXT + AGE), *restrict waiting = LANE(NEXT + WAITING);
#pragma omp simd
    for (int64_t m = 0; m < t->width; m++) {
        const int32_t k = kind[m];
        const float scale = at_least(mean[k] - low[k], 1e-6f);
        const float past = at_least(tokens[m] - low[k], 0.0f);
        const float tail =
            scale * (1.0f - exp_of(-at_least(high[k] - low[k] - past, 0.0f) / scale));
        left[m] = at_least(at_least(low[k] - tokens[m], 0.0f) + tail, 1.0f);
        estimate[m] = (c->prior_tokens * known[k] + accepted[m]) / (c->prior_tokens + tested[m]);
        age[m] = ((slot[m] + 1.0f) * c->slot_s - since[m]) * active[m];
        waiting[m] = arrived[m] - finished[m] - active[m];
    }
}

/* Counts and flags, which leave in other types. */
static void store_counts(const Tile *t, const Outputs *out, int64_t B) {
    const int64_t plane = B * t->M;
    const int64_t *restrict task = t->in->task + t->device;
    const int64_t *restrict to_server = t->in->to_server + t->device;
    const int32_t *restrict kind = t->kind;
    const float *restrict active = LANE(IS_ACTIVE), *restrict bits = LANE(NEXT + UPLOAD_BITS);
    const float *restrict kv = LANE(NEXT + KV_TOKENS), *restrict prompt = LANE(NEXT + PROMPT);
    const float *restrict tokens = LANE(NEXT + TOKENS), *restrict finished = LANE(GONE);
    const float *restrict keep = LANE(KEEP), *restrict ends = LANE(FINISHES);
    const float *restrict moved = LANE(IS_MOVED), *restrict was_kv = LANE(KV);
    int64_t *restrict counts = out->state_counts + t->device;
    int64_t *restrict finished_task = out->finished_task + t->device;
    uint8_t *restrict flags = out->flags + t->device;
#pragma omp simd
    for (int64_t m = 0; m < t->count; m++) {
        const int32_t is_active = active[m] > 0.0f, is_sent = bits[m] <= 0.0f;
        const int32_t is_read = kv[m] >= prompt[m] + tokens[m];
        counts[PHASE * plane + m] = is_active * (UPLOADING + is_sent + (is_sent & is_read));
        counts[FINISHED_COUNT * plane + m] = (int32_t)finished[m];
        counts[TASK * plane + m] = kind[m];
        counts[SERVER * plane + m] = keep[m] > 0.0f ? to_server[m] : -1;
        finished_task[m] = ends[m] > 0.0f ? task[m] : 0;
    }
#pragma omp simd
    for (int64_t m = 0; m < t->count; m++) {
        flags[ACTIVE * plane + m] = active[m] > 0.0f;
        flags[HANDOVER * plane + m] = moved[m] * was_kv[m] > 0.0f;
        flags[IS_FINISHED * plane + m] = ends[m] > 0.0f;
    }
}

/* Everything else that leaves by device and server. */
static void store(const Tile *t, const Outputs *out, int64_t B) {
    const Inputs *in = t->in;
    const Constants *c = t->c;
    const int64_t plane = B * t->M;
    const size_t bytes = (size_t)t->count * sizeof(float);
    for (int k = 0; k < STATE_COLUMNS; k++)
        memcpy(out->state_columns + k * plane + t->device, LANE(NEXT + k), bytes);
    for (int k = 0; k < OUTCOME_COLUMNS; k++)
        memcpy(out->outcome_columns + k * plane + t->device, LANE(OUT + k), bytes);
    if (out->battery_columns)
        for (int k = 0; k < BATTERY_COLUMNS; k++)
            memcpy(out->battery_columns + k * plane + t->device, LANE(BATTERY + k), bytes);
    /* A request that started holds nothing yet, so that its new server does not matter. */
    float *restrict held = AT(SUM_LOG), *restrict prefill = AT(SUM_WORK);
    sum_by_server(t, LANE(NEXT + KV_TOKENS), LANE(PREFILL_WORK), held, prefill);
    const float *restrict busy = AT(BUSY_SHARE);
    for (int64_t e = 0; e < t->servers; e++) {
        const int64_t s = t->server + e;
        const float computing_s = at_most(busy[e] * c->slot_s + prefill[e], c->slot_s);
        out->kv_free[s] = in->capacity[s] - held[e];
        out->server_energy[s] = computing_s * in->server_power[s];
    }
}

/* Sums over the devices of each network, by way of their servers. */
static void store_sums(const Tile *t, const Outputs *out) {
    const Inputs *in = t->in;
    const Constants *c = t->c;
    const float *restrict was_arrived = LANE(WAS_ARRIVED), *restrict saved = LANE(SAVED);
    const float *restrict was_finished = LANE(WAS_FINISHED), *restrict failed = LANE(BATTERY + FAILED);
    const float *restrict arrived = LANE(NEXT + ARRIVED), *restrict gone = LANE(GONE);
    float *restrict alive = LANE(WORK), *restrict open = LANE(KEEP);
#pragma omp simd
    for (int64_t m = 0; m < t->width; m++) {
        const float present = was_arrived[m] - was_finished[m];
        alive[m] = present * c->slot_s - saved[m] + failed[m] * c->failure_s;
        open[m] = arrived[m] > gone[m] ? 1.0f : 0.0f;
    }
    const float *restrict alive_s = AT(SUM_LOG), *restrict left = AT(SUM_WORK);
    sum_by_server(t, alive, open, AT(SUM_LOG), AT(SUM_WORK));
    for (int64_t n = 0; n < t->networks; n++) {
        const int64_t b = t->network + n, slot = in->slot[b];
        float whole_s = slot < t->T ? in->waiting[b * t->T + slot] : 0.0f, rest = 0.0f;
        for (int64_t e = n * t->E; e < (n + 1) * t->E; e++) {
            whole_s += alive_s[e];
            rest += left[e];
        }
        out->alive[b] = whole_s;
        out->drained[b] = slot + 1 >= t->T && rest == 0.0f;
        out->slot[b] = slot + 1;
    }
}

static int64_t padded(int64_t lanes) { return (lanes + LANES - 1) / LANES * LANES; }

static int64_t networks_per_tile(int64_t M) { return M < TILE_LANES ? TILE_LANES / M : 1; }

/* Scratch that play_slot needs as `scratch`. */
int64_t scratch_floats(int64_t M, int64_t E) {
    const int64_t networks = networks_per_tile(M);
    return (LANE_ROWS + 2) * padded(networks * M) + SERVER_ROWS * networks * E;
}

void play_slot(const Inputs *in, const Constants *c, int64_t B, int64_t M, int64_t E, int64_t R,
               int64_t T, const Outputs *out, float *scratch) {
    const int64_t step = networks_per_tile(M);
    for (int64_t b = 0; b < B; b += step) {
        const int64_t networks = B - b < step ? B - b : step, width = padded(networks * M);
        float *server_rows = scratch + LANE_ROWS * width;
        int32_t *chosen = (int32_t *)(server_rows + SERVER_ROWS * networks * E);
        const Tile tile = {
            in, c, M, E, R, T, b, networks, b * M, networks * M, b * E, networks * E, width,
            scratch, server_rows, chosen, chosen + width};
        const Tile *t = &tile;
        load(t);
        find_queues(t);
        find_payloads(t);
        settle_rates(t);
        find_thinking(t);
        solve_batching(t);
        play(t);
        count_requests(t);
        admit(t);
        describe(t);
        store_counts(t, out, B);
        store(t, out, B);
        store_sums(t, out);
    }
}
