/** Stand-in for the declarations that the screen uses of androidx.compose.ui.text.input. */
package androidx.compose.ui.text.input

enum class ImeAction { Send }
enum class KeyboardCapitalization { Sentences }
