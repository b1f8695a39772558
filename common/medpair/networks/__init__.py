"""Networks: generators, critics, segmenters."""
