"""The node's side: trains, evaluates, and says which node of the plan it is."""

from flower_edge.clients import edge_client_app
from quickstart.task import Net, elastic, load_data, loss, methods

app = edge_client_app(Net, load_data, loss, methods=methods, elastic=elastic)
