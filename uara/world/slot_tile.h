/* What a compiled slot reads, writes and keeps between its steps.
 *
 * Shape legend: B networks, M devices, E servers, R requests of a device, T slots with arrivals.
 * Arrays are contiguous. Networks are played in tiles of a few: the devices of a tile lie side by
 * side, one per lane, and so do its servers; lanes are padded to whole vectors of 16. A lane of
 * padding is a device without a request on the tile's first server.
 */
#ifndef UARA_SLOT_TILE_H
#define UARA_SLOT_TILE_H

#include <stdint.h>
#include <string.h>

#include "radio/native_link.h"

#define LANES 16
#define WAYS 4 /* divides LANES */
#define TILE_LANES 128
#define LARGE 1e30f /* beyond it a time to the first token is infinite */

/* The same order as in native_slot.py. */
typedef struct {
    float uplink_noise;   /* W/Hz */
    float downlink_noise; /* W/Hz */
    Link link;
    float activity_passes; /* of links that disturb each other; 0: each has a band of its own */
    float rate_min;        /* bit/s */
    float drafts;          /* 1: devices may draft; 0: servers decode alone */
    float id_bytes;
    float row_bytes;        /* of probabilities per drafted token */
    float draft_base_bits;  /* of a draft's frame without its two fields */
    float prompt_base_bits; /* of an opening frame without its ids */
    float verdict_accepted_bits;
    float verdict_rejected_bits;
    float token_bits;
    float chunk_tokens;       /* prefill tokens per pass */
    float inverse_efficiency; /* electrical over radiated power */
    float slot_s;
    float prior_tokens; /* weight of the task's mean acceptance in the estimate */
    float infinity;     /* passed in: -ffast-math knows none */
    float iterations;   /* of the batching fixed point */
    float idle_j;       /* drawn in a slot by a device that is not dead */
    float failure_s;    /* that a failed request counts */
} Constants;

/* The same order as in native_slot.py. */
typedef struct {
    const float *uplink_table; /* of the link model */
    const float *downlink_table;
    /* the slot's true gains: a table of (M, E) rows, and the row of each network (B,) */
    const float *gain;
    const int64_t *gain_row;
    /* decision, (B, M) */
    const int64_t *to_server;
    const float *bandwidth;
    const float *power;
    const int64_t *draft_length;
    /* progress */
    const int64_t *slot; /* (B,) */
    const int64_t *finished;
    const float *arrived;
    const uint8_t *active;
    const float *upload_bits;
    const float *kv;
    const float *tokens;
    const int64_t *server;
    const float *accepted;
    const float *tested;
    const float *ttft;
    const float *battery; /* NULL: none */
    /* current request, (B, M), zeros where there is none */
    const int64_t *task;
    const float *prompt;
    const float *attachment;
    const float *output;
    const float *acceptance;
    const float *arrival;
    /* request table, (B, M, R) */
    const double *table_arrival;
    const int64_t *table_task;
    const float *table_prompt;
    const float *table_attachment;
    const float *table_output;
    const float *table_acceptance;
    /* arrivals (B, T, M) and waiting seconds (B, T) of the slots */
    const float *arrivals;
    const float *waiting;
    /* tasks, (number of tasks,) */
    const float *task_acceptance;
    const float *answer_low;
    const float *answer_mean;
    const float *answer_high;
    /* devices, (B, M) */
    const float *draft_time;
    const float *draft_power;
    /* servers, (B, E) */
    const float *fixed;
    const float *row;
    const float *token;
    const float *cached;
    const float *server_power;
    const float *uplink_hz;
    const float *downlink_hz;
    const float *downlink_power;
    const float *rtt;
    const float *foreign_rows;
    const float *foreign_tokens;
    const float *capacity;
} Inputs;

typedef struct {
    float *state_columns;   /* (STATE_COLUMNS, B, M) */
    int64_t *state_counts;  /* (STATE_COUNTS, B, M) */
    float *outcome_columns; /* (OUTCOME_COLUMNS, B, M) */
    uint8_t *flags;         /* (FLAGS, B, M) */
    int64_t *finished_task; /* (B, M) */
    int64_t *slot;          /* (B,) */
    float *kv_free;         /* (B, E) */
    float *server_energy;   /* (B, E) */
    float *alive;           /* (B,) */
    uint8_t *drained;       /* (B,) */
    float *battery_columns; /* (BATTERY_COLUMNS, B, M); NULL: no batteries */
} Outputs;

/* The same orders as in native_slot.py. */
enum {
    ARRIVED, UPLOAD_BITS, KV_TOKENS, TOKENS, ACCEPTED, TESTED, TTFT, PROMPT, ATTACHMENT, OUTPUT,
    ACCEPTANCE, ARRIVAL, AGE, WAITING, REMAINING, ESTIMATE, STATE_COLUMNS
};
enum { FINISHED_COUNT, SERVER, TASK, PHASE, STATE_COUNTS };
enum {
    COMMITTED, ENERGY, UPLINK_BITS, DOWNLINK_BITS, E2E, FINISHED_TTFT, FINISHED_TOKENS,
    OUTCOME_COLUMNS
};
enum { ACTIVE, HANDOVER, IS_FINISHED, FLAGS };
enum { BATTERY_LEFT, BATTERY_SHARE, FAILED, BATTERY_COLUMNS };
enum { UPLOADING = 1 };

/* Scratch of a tile: rows over lanes, then rows over servers. */
enum {
    /* inputs, padded */
    GAIN, HERTZ, WATT, GAMMA, WAS_ARRIVED, WAS_FINISHED, HAS, BITS, KV, SO_FAR, WAS_ACCEPTED,
    WAS_TESTED, WAS_TTFT, PROMPT_IN, PHOTO, LENGTH, ALPHA, SINCE, DRAFT_TIME, DRAFT_POWER, IS_MOVED,
    FRESH, SLOT,
    /* prediction */
    MISSING, CONTEXT, UP, DOWN, DRAFT_BITS, VERDICT_BITS, PER_ROUND, OWN, THINK, DECODES, QUEUES,
    UPLINK_NOISE, DOWNLINK_NOISE, SENDS, RECEIVES, ALONE, PASS, WAIT, LOG_IDLE, WORK, ROUND,
    PREFILL_RATE,
    /* outcome and what follows */
    TIME_UP, TIME_PREFILL, TIME_DECODE, FIRST_TOKEN, FINISHES, SAVED, PREFILL_WORK, KEEP, GONE,
    STARTS, IS_ACTIVE, LIVES,
    OUT, NEXT = OUT + OUTCOME_COLUMNS, BATTERY = NEXT + STATE_COLUMNS,
    LANE_ROWS = BATTERY + BATTERY_COLUMNS
};
enum {
    USERS, QUEUE, BASE, SUM_LOG, SUM_WORK, IDLE_FREE, CHUNK, RATE, BUSY_SHARE, HEARD, DENSITY,
    SERVER_SENDS, PARTIAL, SERVER_ROWS = PARTIAL + 2 * WAYS
};

typedef struct {
    const Inputs *in;
    const Constants *c;
    int64_t M, E, R, T;
    int64_t network, networks; /* the first one, and how many */
    int64_t device, count;     /* the first one of all, and how many */
    int64_t server, servers;   /* likewise */
    int64_t width;             /* lanes: `count`, padded */
    float *lane_rows;          /* (LANE_ROWS, width) */
    float *server_rows;        /* (SERVER_ROWS, servers) */
    int32_t *chosen;           /* (width,) server of the decision, as the tile counts them */
    int32_t *kind;             /* (width,) task */
} Tile;

#define LANE(name) (t->lane_rows + (name) * t->width)
#define AT(name) (t->server_rows + (name) * t->servers)

static inline float at_least(float x, float low) { return x < low ? low : x; }
static inline float at_most(float x, float high) { return x > high ? high : x; }

/* Bytes of a field with its head, which grows with the content. */
static inline float field_bytes(float content) {
    return content + 2.0f + (content > 255.0f ? 1.0f : 0.0f) + (content > 65535.0f ? 2.0f : 0.0f);
}

/* Sum two rows over the devices of each server. Neighbouring devices add to sums of their own, so
 * that few additions wait for the one before. */
static void sum_by_server(const Tile *t, const float *restrict first, const float *restrict second,
                          float *restrict first_sums, float *restrict second_sums) {
    const int32_t *restrict server = t->chosen;
    float *restrict partial = AT(PARTIAL);
    memset(partial, 0, (size_t)(2 * WAYS * t->servers) * sizeof(float));
    for (int64_t m = 0; m < t->width; m += WAYS)
        for (int way = 0; way < WAYS; way++) {
            float *restrict at = partial + 2 * (WAYS * (int64_t)server[m + way] + way);
            at[0] += first[m + way];
            at[1] += second[m + way];
        }
    for (int64_t e = 0; e < t->servers; e++) {
        const float *restrict at = partial + 2 * WAYS * e;
        float one = 0.0f, two = 0.0f;
        for (int way = 0; way < WAYS; way++) {
            one += at[2 * way];
            two += at[2 * way + 1];
        }
        first_sums[e] = one;
        second_sums[e] = two;
    }
}

#endif
