"""How a component becomes an ML program: traced without numbers (`trace`), ranges measured (`ranges`), its weights put
into the weight file (`weights`), each operation said in MIL (`lower`, `memory`), and all of it packed (`package`).

Not by coremltools' own reading of torch: it holds the weights several times, quantises by rules of its own, and fails
with NumPy 2.4 (coremltools 9.0, `_cast`). Its builder, its checks and its writer are used.
"""
