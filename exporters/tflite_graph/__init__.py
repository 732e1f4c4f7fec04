"""How a component becomes a TFLite file: traced (`trace`), each operation lowered to one of TFLite's (`lower`), its
weights stored in a scheme (`weights`), and all of it written as one flatbuffer (`model`)."""
