"""How a component becomes an ONNX graph: traced without numbers (`trace`), then given them in a scheme (`lower`)."""
