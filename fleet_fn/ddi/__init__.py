"""A client of hawkBit's Direct Device Integration API (DDI).

Other servers implement the API, too.
"""
