"""What is done: who gets which task, silent checks, answers, reviews, the queue, the arena, the overview."""
