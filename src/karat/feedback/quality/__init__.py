"""How good the judgements are: agreement, consensus, reliability, drift, populations, plans. Pure statistics, and their views."""
