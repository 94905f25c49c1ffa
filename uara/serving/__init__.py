"""From bits per second to seconds per token: machines, payloads, acceptance, modes, batching."""
