"""Bundles over HTTP, as the OpenAI protocol speaks, with a page for people. `edge serve` starts it.

Needs the extra `serve`. One thread runs the engines (`work`); everything that is read from a client is bounded
(`limits`) and checked (`fields`, `pictures`, `security`) before it gets there.
"""
