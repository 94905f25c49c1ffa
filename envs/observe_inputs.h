/* What compiled observations read and write.
 *
 * Shape legend: B networks, M devices, E servers. Arrays are float32 and contiguous unless said
 * otherwise.
 */
#ifndef UARA_OBSERVE_INPUTS_H
#define UARA_OBSERVE_INPUTS_H

#include <math.h>
#include <stdint.h>

#include "radio/native_link.h"

#define LANES 16
#define NUM_FEATURES 10
#define DEVICE_FEATURES 13
#define SERVER_FEATURES 9

/* The same order as in native_observation.py. */
typedef struct {
    float uplink_noise;   /* W/Hz */
    float downlink_noise; /* W/Hz */
    Link link;
    float shares_band;    /* 1: all servers use one band and disturb each other */
    float activity;       /* share of time that a decoding device is taken to send */
    float rate_min;       /* bit/s */
    float draft_bits;     /* of the assumed draft; 0 where the mode does not draft */
    float draft_length;   /* tokens */
    float presence;       /* share of time that another request sits in a forward pass */
    float residual_share; /* of a pass that a returning request waits */
    float chunk_tokens;   /* prefill tokens per pass */
    float drafts;         /* 1: a round is the sum of its parts; 0: the forward pass */
    float verdict_bits;   /* of a verdict without a rejection, or of one streamed token */
    float rejection_bits; /* that a rejection adds */
} Constants;

/* The same order as in native_observation.py. */
typedef struct {
    const float *uplink_table;   /* of the link model */
    const float *downlink_table; /* of the link model */
    const float *gain;           /* (B, M, E) */
    const uint8_t *reachable;    /* (B, M, E) */
    const int64_t *server;       /* (B, M), -1: none */
    const int64_t *phase;        /* (B, M) */
    const float *prompt;         /* (B, M) tokens */
    const float *tokens;         /* (B, M) of the answer so far */
    const float *kv;             /* (B, M) tokens in KV memory */
    const float *upload_bits;    /* (B, M) */
    const float *remaining;      /* (B, M) tokens */
    const float *draft_time;     /* (B, M) s per token */
    const float *acceptance;     /* (B, M) */
    const float *age;            /* (B, M) s */
    const float *waiting;        /* (B, M) requests */
    const float *power;          /* (B, M) W */
    const float *uplink_hz;      /* (B, E) */
    const float *downlink_hz;    /* (B, E) */
    const float *downlink_power; /* (B, E) W */
    const float *rtt;            /* (B, E) s */
    const float *fixed;          /* (B, E) s per pass */
    const float *row;            /* (B, E) s per sequence */
    const float *token;          /* (B, E) s per new token */
    const float *cached;         /* (B, E) s per cached token */
    const float *foreign_rows;   /* (B, E) */
    const float *foreign_tokens; /* (B, E) prefill backlog of others */
    const float *kv_free;        /* (B, E) tokens */
} Inputs;

typedef struct {
    float *device; /* (DEVICE_FEATURES, B, M) */
    float *pair;   /* (B, NUM_FEATURES, E, width): M, padded to whole vectors of 16 */
    float *server; /* (SERVER_FEATURES, B, E) */
} Outputs;

enum { IDLE = 0, UPLOADING = 1, PREFILLING = 2, DECODING = 3 };

static inline float clampf(float x, float low, float high) {
    x = x < low ? low : x;
    return x > high ? high : x;
}

#endif
