"""A comparison of gossip runs as one picture and one self-contained page.

Takes plain data, draws it with matplotlib (extra ``report``), and knows nothing of Flower.
"""

from flower_edge.report.data import Method, Report, Topology
from flower_edge.report.figure import write_png
from flower_edge.report.page import write_html

__all__ = ["Method", "Report", "Topology", "write_html", "write_png"]
