/** Reasons and notes as sentences, as `covidcxr.pipeline.in_words` has them. */

const WORDS = {
  "not-a-frontal-film": "This does not look like a frontal chest radiograph.",
  child: "This looks like a chest radiograph of a child. The models have learnt from adults only.",
  "film-inverted":
    "The image seems to be inverted, with dark bones and bright lungs, but the view check is not sure enough to correct it. Invert it and run it again.",
  "film-turned":
    "The image seems to lie on its side or upside down, but the view check is not sure enough to correct it. Turn it upright and run it again.",
  "inverted-corrected":
    "The image is inverted, with dark bones and bright lungs; the models saw it with black and white exchanged.",
  "lungs-not-found":
    "No lungs were found. Check that this is a frontal chest radiograph and neither inverted nor cut off.",
  "only-one-lung-found":
    "Only one lung was found. Check whether the other is hidden (white-out, effusion, removed lung) or cut off.",
  "lungs-not-side-by-side":
    "The two lungs do not lie side by side. Check whether the image is rotated by 90 degrees or shows a side view.",
  "several-answers-plausible": "More than one class is plausible; see the probabilities.",
  "no-answer-plausible": "No class is plausible; see the probabilities.",
};

export function inWords(reason) {
  const turned = /^turned-(\d+)-corrected$/.exec(reason);
  if (turned) {
    return `The image lies turned clockwise by ${turned[1]} degrees; the models saw it turned upright, and the masks fit the image as it was given.`;
  }
  const area = /^lung-area-below-(.+)-percent$/.exec(reason);
  if (area) {
    return `The lungs cover less than ${area[1]} % of the image. Crop the image to the chest, or check for lungs that are hidden by an opacity.`;
  }
  const part = /^(.+)-not-finite$/.exec(reason)?.[1];
  if (part) {
    const name = part === "gate" ? "view check" : part.replaceAll("-", " ");
    return `The ${name} computed no finite numbers for this image: its values are too large, or damaged.`;
  }
  return WORDS[reason] ?? reason;
}
