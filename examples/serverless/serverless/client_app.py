"""The board's side: trains, and exchanges models with its neighbours."""

from serverless.task import Net, load_data, loss

from flower_edge.clients import edge_client_app

app = edge_client_app(Net, load_data, loss)
