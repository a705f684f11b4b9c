"""Boards: entries of a leaderboard, their ranking, and what keeps them honest."""
