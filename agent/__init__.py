"""The agent: dials out to the distributor, runs jobs in runners, reports.

It knows nothing of scheduling, and never imports the distributor.
"""
