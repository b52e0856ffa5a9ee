"""Simulators, recording and closed-loop evaluation."""
