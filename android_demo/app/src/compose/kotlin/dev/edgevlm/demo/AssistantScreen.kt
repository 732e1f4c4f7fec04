/** The screen in Compose: one function of what the assistant says, which asks it for all that is done. */
package dev.edgevlm.demo

import android.Manifest
import android.content.Intent
import android.graphics.Bitmap
import androidx.activity.compose.ManagedActivityResultLauncher
import androidx.activity.compose.rememberLauncherForActivityResult
import androidx.activity.result.ActivityResult
import androidx.activity.result.contract.ActivityResultContracts.RequestMultiplePermissions
import androidx.activity.result.contract.ActivityResultContracts.StartActivityForResult
import androidx.compose.foundation.Image
import androidx.compose.foundation.clickable
import androidx.compose.foundation.layout.Column
import androidx.compose.foundation.layout.ColumnScope
import androidx.compose.foundation.layout.Row
import androidx.compose.foundation.layout.Spacer
import androidx.compose.foundation.layout.fillMaxSize
import androidx.compose.foundation.layout.fillMaxWidth
import androidx.compose.foundation.layout.padding
import androidx.compose.foundation.layout.safeDrawingPadding
import androidx.compose.foundation.rememberScrollState
import androidx.compose.foundation.text.KeyboardActions
import androidx.compose.foundation.text.KeyboardOptions
import androidx.compose.foundation.text.selection.SelectionContainer
import androidx.compose.foundation.verticalScroll
import androidx.compose.material3.AlertDialog
import androidx.compose.material3.Button
import androidx.compose.material3.MaterialTheme
import androidx.compose.material3.OutlinedTextField
import androidx.compose.material3.Text
import androidx.compose.material3.TextButton
import androidx.compose.runtime.Composable
import androidx.compose.runtime.LaunchedEffect
import androidx.compose.runtime.collectAsState
import androidx.compose.runtime.getValue
import androidx.compose.runtime.mutableStateOf
import androidx.compose.runtime.remember
import androidx.compose.runtime.saveable.rememberSaveable
import androidx.compose.runtime.setValue
import androidx.compose.ui.Modifier
import androidx.compose.ui.graphics.asImageBitmap
import androidx.compose.ui.platform.LocalContext
import androidx.compose.ui.res.stringResource
import androidx.compose.ui.semantics.LiveRegionMode
import androidx.compose.ui.semantics.liveRegion
import androidx.compose.ui.semantics.semantics
import androidx.compose.ui.text.input.ImeAction
import androidx.compose.ui.text.input.KeyboardCapitalization
import androidx.compose.ui.unit.dp

/** [refused]: the camera may not be used. */
@Composable
fun AssistantScreen(assistant: Assistant, refused: () -> Unit) {
    val screen by assistant.screen.collectAsState()
    var typed by rememberSaveable { mutableStateOf("") }
    val hint = stringResource(R.string.question)
    val start = errands(assistant)
    val take = camera(refused) { start(Errand.TAKE) }
    val live = camera(refused) { assistant.live(typed.trim().ifEmpty { hint }) }
    val ask = { assistant.ask(typed.trim().ifEmpty { hint }).also { typed = "" } }
    Column(Modifier.fillMaxSize().safeDrawingPadding().padding(16.dp)) {
        Buttons(assistant, screen, start, take, live)
        Photo(screen.photo)
        Talk(screen.talk)
        Row {
            Question(typed, hint, Modifier.weight(1f), change = { typed = it }, send = ask)
            Button(onClick = if (screen.question == null) ask else assistant::stop, enabled = screen.canAsk) {
                Text(stringResource(if (screen.question == null) R.string.ask else R.string.stop))
            }
        }
        Text(screen.status, style = MaterialTheme.typography.bodyMedium)
        Proof(screen, assistant::prove)
    }
}

@Composable
private fun Buttons(
    assistant: Assistant,
    screen: Screen,
    start: (Errand) -> Unit,
    take: () -> Unit,
    live: () -> Unit,
) {
    var choosing by remember { mutableStateOf(false) }
    val buttons = listOf<Pair<Int, () -> Unit>>(
        R.string.pick to { start(Errand.PICK) },
        R.string.take to take,
        R.string.live to live,
        R.string.model to { choosing = true },
        R.string.bench to { assistant.bench(null) },
    )
    Row {
        for ((name, press) in buttons) {
            TextButton(onClick = press, modifier = Modifier.weight(1f), enabled = !screen.busy) {
                Text(stringResource(name), maxLines = 1)
            }
        }
    }
    if (choosing) Models(assistant, screen.models, start) { choosing = false }
}

@Composable
private fun ColumnScope.Photo(photo: Bitmap?) {
    val space = Modifier.fillMaxWidth().weight(1f)
    if (photo == null) Spacer(space)
    else Image(remember(photo) { photo.asImageBitmap() }, stringResource(R.string.photo), space)
}

@Composable
private fun ColumnScope.Talk(talk: String) {
    val scroll = rememberScrollState()
    LaunchedEffect(scroll.maxValue) { scroll.scrollTo(scroll.maxValue) }
    Column(Modifier.fillMaxWidth().weight(1f).verticalScroll(scroll)) {
        SelectionContainer {
            Text(
                talk,
                Modifier.semantics { liveRegion = LiveRegionMode.Polite },
                style = MaterialTheme.typography.bodyLarge,
            )
        }
    }
}

@Composable
private fun Question(
    typed: String,
    hint: String,
    modifier: Modifier,
    change: (String) -> Unit,
    send: () -> Unit,
) = OutlinedTextField(
    value = typed,
    onValueChange = change,
    modifier = modifier,
    placeholder = { Text(hint) },
    keyboardOptions = KeyboardOptions(capitalization = KeyboardCapitalization.Sentences, imeAction = ImeAction.Send),
    keyboardActions = KeyboardActions(onSend = { send() }),
    maxLines = 3,
)

/** The sentence; touched, its stages. */
@Composable
private fun Proof(screen: Screen, again: () -> Unit) {
    var opened by remember { mutableStateOf(false) }
    val touched = Modifier.clickable(enabled = screen.proof.isNotEmpty()) { opened = true }
    Text(screen.proof, touched, style = MaterialTheme.typography.bodySmall)
    if (!opened) return
    val close = { opened = false }
    AlertDialog(
        onDismissRequest = close,
        confirmButton = { Choice(stringResource(R.string.again), close, again) },
        title = { Text(screen.proof, style = MaterialTheme.typography.titleMedium) },
        text = { Text(screen.stages, Modifier.verticalScroll(rememberScrollState())) },
    )
}

@Composable
private fun Models(assistant: Assistant, names: List<String>, start: (Errand) -> Unit, close: () -> Unit) = AlertDialog(
    onDismissRequest = close,
    confirmButton = {},
    title = { Text(stringResource(R.string.model)) },
    text = {
        Column(Modifier.verticalScroll(rememberScrollState())) {
            for (name in names) Choice(name, close) { assistant.choose(name) }
            Choice(stringResource(R.string.zip), close) { start(Errand.ZIP) }
            Choice(stringResource(R.string.folder), close) { start(Errand.FOLDER) }
        }
    },
)

/** One way out of a dialog. */
@Composable
private fun Choice(name: String, close: () -> Unit, choose: () -> Unit) = TextButton(onClick = {
    close()
    choose()
}) { Text(name) }

/** Sends other apps on their errands; one that comes back finds the screen that is there then. */
@Composable
private fun errands(assistant: Assistant): (Errand) -> Unit {
    val context = LocalContext.current
    val launchers = Errand.entries.associateWith { launcher(it, assistant) }
    return { errand -> errand.start(context) { launchers.getValue(errand).launch(it) } }
}

// Another contract would be registered anew, and each word of an answer draws the screen anew.
@Composable
private fun launcher(errand: Errand, assistant: Assistant): ManagedActivityResultLauncher<Intent, ActivityResult> =
    rememberLauncherForActivityResult(remember { StartActivityForResult() }) {
        errand.done(assistant, it.resultCode, it.data)
    }

/** An app that names the permission may not even send a person to the camera's own app without it. */
@Composable
private fun camera(refused: () -> Unit, use: () -> Unit): () -> Unit {
    val permission = rememberLauncherForActivityResult(remember { RequestMultiplePermissions() }) { given ->
        when (given[Manifest.permission.CAMERA]) {
            true -> use()
            false -> refused()
            null -> {} // the question was cut off
        }
    }
    return { permission.launch(arrayOf(Manifest.permission.CAMERA)) }
}
