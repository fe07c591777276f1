"""Decisions over results: intervals, comparisons and what they show. The modules without SQL or HTTP are pure."""
