"""How a component becomes an ML program: traced without numbers (`trace`), ranges measured (`ranges`), its weights put
into the weight file (`weights`), each operation said in MIL (`lower`, `attend`), and all of it packed (`package`)."""
