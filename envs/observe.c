/* Features of an observation in one pass: the arithmetic of envs/observation.py, fused, for the
 * serving modes whose round is a sum of its parts or the forward pass alone.
 *
 * Shape legend: B networks, M devices, E servers.
 */
#include "observe_inputs.h"
#include "observe_pairs.h"

/* What devices know of themselves, (B, M) flat. */
static void observe_devices(const Inputs *in, const Outputs *out, int64_t count) {
    const int64_t *restrict phase = in->phase, *restrict server = in->server;
    const float *restrict remaining = in->remaining, *restrict bits = in->upload_bits;
    const float *restrict prompt = in->prompt, *restrict tokens = in->tokens;
    const float *restrict acceptance = in->acceptance, *restrict age = in->age;
    const float *restrict draft_time = in->draft_time, *restrict queue = in->waiting;
    float *restrict row = out->device;
#pragma omp simd
    for (int64_t m = 0; m < count; m++) {
        const int32_t now = (int32_t)phase[m];
        const float active = now != IDLE ? 1.0f : 0.0f;
        row[m] = active;
        row[count + m] = (int32_t)server[m] < 0 ? active : 0.0f;
        row[2 * count + m] = now == UPLOADING ? 1.0f : 0.0f;
        row[3 * count + m] = now == PREFILLING ? 1.0f : 0.0f;
        row[4 * count + m] = now == DECODING ? 1.0f : 0.0f;
        row[5 * count + m] = clampf(remaining[m] * 0.01f, 0.0f, 10.0f) * active;
        row[6 * count + m] = clampf(log1p_of(bits[m] * 1e-6f), 0.0f, 8.0f) * active;
        row[7 * count + m] = clampf(prompt[m] * 1e-3f, 0.0f, 20.0f) * active;
        row[8 * count + m] = clampf(tokens[m] * 0.01f, 0.0f, 10.0f) * active;
        row[9 * count + m] = clampf(acceptance[m], 0.0f, 1.0f) * active;
        row[10 * count + m] = clampf(draft_time[m] * (1.0f / 0.03f), 0.0f, 10.0f) * active;
        row[11 * count + m] = clampf(age[m] * 0.05f, 0.0f, 10.0f) * active;
        row[12 * count + m] = clampf(queue[m] * 0.5f, 0.0f, 10.0f) * active;
    }
}

/* What the servers of a network broadcast. */
static void observe_servers(const Network *n, float *restrict row, int64_t plane) {
    const Inputs *in = n->in;
    const float *requests = OF_SERVER(REQUESTS), *uploading = OF_SERVER(SENDING);
    const float *held = OF_SERVER(HOLDING), *backlog = OF_SERVER(BACKLOG);
    for (int64_t e = 0; e < n->E; e++) {
        const int64_t s = n->server + e;
        const float token = in->token[s], free_tokens = in->kv_free[s];
        const float capacity = free_tokens + held[e];
        row[s] = clampf(in->fixed[s] * (1.0f / 0.15f), 0.0f, 10.0f);
        row[plane + s] = clampf(token * (512.0f / 0.15f), 0.0f, 10.0f);
        row[2 * plane + s] = clampf(requests[e] * 0.2f, 0.0f, 20.0f);
        row[3 * plane + s] = clampf(uploading[e] * 0.2f, 0.0f, 20.0f);
        row[4 * plane + s] = clampf(log1p_of(backlog[e] * token) * (1.0f / 3.0f), 0.0f, 4.0f);
        row[5 * plane + s] = clampf(in->foreign_rows[s] * 0.125f, 0.0f, 20.0f);
        row[6 * plane + s] = clampf(free_tokens / (capacity < 1.0f ? 1.0f : capacity), 0.0f, 1.0f);
        row[7 * plane + s] = clampf(in->uplink_hz[s] * 1e-6f, 0.0f, 100.0f);
        row[8 * plane + s] = clampf(in->rtt[s] * 10.0f, 0.0f, 10.0f);
    }
}

static int64_t padded(int64_t devices) { return (devices + LANES - 1) / LANES * LANES; }

/* Scratch that `observe` needs. */
int64_t scratch_floats(int64_t M, int64_t E) {
    return (DEVICE_ROWS + PAIR_ROWS * E) * padded(M) + SERVER_ROWS * E;
}

void observe(const Inputs *in, const Constants *c, int64_t B, int64_t M, int64_t E,
             const Outputs *out, float *scratch) {
    const int64_t width = padded(M);
    float *noise = scratch + DEVICE_ROWS * width, *servers = noise + PAIR_ROWS * E * width;
    observe_devices(in, out, B * M);
    for (int64_t b = 0; b < B; b++) {
        float *features = out->pair + b * NUM_FEATURES * E * width;
        const Network n = {in, c, M, E, width, b * M, b * E, features, scratch, servers, noise};
        observe_pairs(&n);
        observe_servers(&n, out->server, B * E);
    }
}
