/** Stand-in for the declarations that the screen uses of androidx.compose.foundation.text. */
package androidx.compose.foundation.text

import androidx.compose.ui.text.input.ImeAction
import androidx.compose.ui.text.input.KeyboardCapitalization

interface KeyboardActionScope
class KeyboardActions(val onSend: (KeyboardActionScope.() -> Unit)?)
class KeyboardOptions(val capitalization: KeyboardCapitalization, val imeAction: ImeAction)
