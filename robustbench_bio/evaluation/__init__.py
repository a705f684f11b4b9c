"""From a network and examples to a result: gate, attack, judge, outcomes, store."""
