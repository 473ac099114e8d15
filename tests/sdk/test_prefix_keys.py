from __future__ import annotations

from mecroute.prefix_keys import MAX_PREFIXES, prefix_keys

SYSTEM = {"role": "system", "content": "Be brief."}
HELLO = {"role": "user", "content": "Hello"}
BYE = {"role": "user", "content": "Bye"}


def test_conversations_share_keys_as_far_as_they_share_messages() -> None:
    hello, bye = prefix_keys([SYSTEM, HELLO]), prefix_keys([SYSTEM, BYE])
    assert hello[0] == bye[0]
    assert hello[1] != bye[1]
    assert prefix_keys([HELLO])[0] not in hello


def test_tools_come_before_the_messages() -> None:
    tools = [{"type": "function", "function": {"name": "look"}}]
    assert not set(prefix_keys([SYSTEM, HELLO], tools=tools)) & set(prefix_keys([SYSTEM, HELLO]))


def test_the_order_of_fields_does_not_matter_and_the_number_is_bounded() -> None:
    assert prefix_keys([{"content": "Hello", "role": "user"}]) == prefix_keys([HELLO])
    assert len(prefix_keys([HELLO] * 1000)) == MAX_PREFIXES
