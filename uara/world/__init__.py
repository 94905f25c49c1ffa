"""What happens over time: requests, mobility along the bank, handover, slots, episodes."""
