"""The bandwidth measurement counts the right bytes; times are not asserted."""

from __future__ import annotations

from bench import roofline


def test_a_plain_step_reads_all_weights_but_the_embedding_table(tiny):
    config = tiny.config
    heads, kv_heads, width = config.num_attention_heads, config.num_key_value_heads, config.head_dim
    hidden = config.hidden_size
    layer = hidden * (heads + 2 * kv_heads) * width + heads * width * hidden
    layer += 3 * hidden * config.intermediate_size + 2 * hidden
    expected = config.num_hidden_layers * layer + hidden + hidden * config.vocab_size
    assert roofline.weight_bytes(tiny) == 4 * expected


def test_rates_are_positive(tiny):
    assert roofline.matvec_bandwidth(megabytes=1, repeats=1) > 0
    assert roofline.plain_rate(tiny, "def", 9) > 0
