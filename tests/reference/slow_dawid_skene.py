"""Dawid and Skene's expectation–maximisation item by item and answer by answer, from the paper's equations 2.3–2.5."""


def fit(answers, n_items, n_raters, n_values, n_iterations):
    """answers: (item, rater, value). Posterior [item][value] and confusion [rater][true][given] without a prior."""
    posterior = [[0.0] * n_values for _ in range(n_items)]
    for item, _, value in answers:
        posterior[item][value] += 1
    posterior = [[p / sum(row) for p in row] for row in posterior]
    confusion = []
    for _ in range(n_iterations):
        prevalence = [sum(row[c] for row in posterior) / n_items for c in range(n_values)]
        confusion = [[[0.0] * n_values for _ in range(n_values)] for _ in range(n_raters)]
        for item, rater, value in answers:
            for c in range(n_values):
                confusion[rater][c][value] += posterior[item][c]
        for rater in confusion:
            for row in rater:
                total = sum(row)
                row[:] = [p / total for p in row] if total > 0 else [1 / n_values] * n_values
        joint = [list(prevalence) for _ in range(n_items)]
        for item, rater, value in answers:
            for c in range(n_values):
                joint[item][c] *= confusion[rater][c][value]
        posterior = [[p / sum(row) for p in row] for row in joint]
    return posterior, confusion
