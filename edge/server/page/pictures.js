// Pictures on their way to the server, as data URIs.

const KNOWN = ["image/jpeg", "image/png", "image/webp", "image/gif", "image/bmp"];
const LARGE = 6e6, SIDE = 2048;

const read = (blob) => new Promise((resolve, reject) => {
  const reader = new FileReader();
  reader.onload = () => resolve(reader.result);
  reader.onerror = () => reject(reader.error);
  reader.readAsDataURL(blob);
});

function drawn(source, width, height, side) {
  const scale = Math.min(1, side / Math.max(width, height)), canvas = document.createElement("canvas");
  canvas.width = Math.max(1, Math.round(width * scale));
  canvas.height = Math.max(1, Math.round(height * scale));
  const context = canvas.getContext("2d");
  context.fillStyle = "white";
  context.fillRect(0, 0, canvas.width, canvas.height);
  context.drawImage(source, 0, 0, canvas.width, canvas.height);
  return canvas.toDataURL("image/jpeg", 0.92);
}

// A file as it is; drawn anew where the server would not read it, or where it is very large.
export async function fromFile(file) {
  if (KNOWN.includes(file.type) && file.size <= LARGE) return read(file);
  let bitmap;
  try {
    bitmap = await createImageBitmap(file, {imageOrientation: "from-image"});
  } catch {
    throw new Error(`${file.name} is no picture that this browser can read`);
  }
  return drawn(bitmap, bitmap.width, bitmap.height, SIDE);
}

export const fromVideo = (video, side = SIDE) => drawn(video, video.videoWidth, video.videoHeight, side);
