"""The shape of rendered configuration: plain JSON values, as Envoy reads them."""

Tree = dict[str, object]
