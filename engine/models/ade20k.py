"""Colours and background of ADE20K's 150 labels, for segmenters whose configuration names neither, and other words.

ControlNet's segmentation model (Zhang et al., ICCV 2023) was trained on label maps in these RGB colours, label 0
(wall) first; they are the palette of MMSegmentation's `ade_palette`.
"""

from collections.abc import Mapping
from types import MappingProxyType

import numpy as np

PALETTE = np.frombuffer(
    bytes.fromhex(
        "787878b4787806e6e650323204c8037878508c8c8ccc05ffe6e6e604fa07e005ffebff0796053d78784608ff33ff0652"
        "8fff8cccff04ff3307cc46030066c83de6faff06330b66ffff0747ff09e00907e6dcdcdcff095c7009ff08ffd607ffe0"
        "ffb8060aff47ff290a07ffffe0ff086608ffff3d06ffc207ff7a0800ff14ff0829ff05990633ffeb0cffa0961400a3ff"
        "8c8c8cfa0a0f14ff001fff00ff1f00ffe00099ff000000ffff470000ebff00adff1f00ff0bc8c8ff520000fff5003dff"
        "00ff7000ff85ff0000ffa300ff6600c2ff00008fff33ff000052ff00ff2900ffad0a00ffadff0000ff99ff5c00ff00ff"
        "ff00f5ff0066ffad00ff0014ffb8b8001fff00ff3d0047ffff00cc00ffc200ff52000aff0070ff3300ff00c2ff007aff"
        "00ffa3ff990000ff0aff70008fff005200ffa3ff00ffeb0008b8aa8500ff00ff5cb800ffff001f00b8ff00d6ffff0070"
        "5cff0000e0ff70e0ff46b8a0a300ff9900ff47ff00ff00a3ffcc00ff008f00ffeb85ff00ff00ebf500ffff007afff500"
        "0abed4d6ff0000ccff1400ffffff000099ff0029ff00ffcc2900ff29ff00ad00ff00f5ff4700ff7a00ff00ffb8005cff"
        "b8ff000085ffffd60019c2c266ff005c00ff"
    ),
    dtype=np.uint8,
).reshape(150, 3)
"""Colour of each label, (150, 3) uint8 RGB."""

# fmt: off
BACKGROUND = frozenset({
    "wall", "sky", "floor", "ceiling", "road", "grass", "sidewalk", "earth", "water", "sea", "field", "sand", "path",
    "river", "land", "lake",
})
# fmt: on
"""Names of labels without a shape of their own: what surrounds a subject, rather than being one."""

# fmt: off
SETTINGS = frozenset({
    "room", "living room", "bedroom", "kitchen", "bathroom", "studio", "snow", "ice", "forest", "wood", "jungle",
    "park", "garden", "city", "town", "village", "countryside", "landscape", "night", "space", "fog", "mist", "rain",
    "storm", "dusk", "dawn", "sunset", "sunrise",
})
# fmt: on
"""Nouns for where a scene is set that are no label."""

SYNONYMS: Mapping[str, str] = MappingProxyType({
    "building": "block of flats, apartment building, office, church, cathedral, temple, castle, barn, palace, shop, "
    "store, school, hospital, factory, cafe, restaurant, hotel, museum, warehouse, mosque, chapel, library",
    "tree": "oak, pine, birch, willow, fir, spruce, maple, apple tree, pine tree, oak tree, christmas tree, beech, "
    "cherry tree, tree trunk, bonsai",
    "bed": "bunk, bunk bed, four-poster, double bed",
    "windowpane": "window",
    "cabinet": "cupboard, sideboard",
    "person": "man, woman, boy, girl, child, kid, baby, lady, gentleman, guy, people, human, farmer, fisherman, "
    "soldier, policeman, doctor, nurse, dancer, king, queen, prince, princess, knight, astronaut, surfer, skier, "
    "cyclist, rider, cowboy, chef, sailor, pirate, wizard, witch, monk, tourist, worker, student, teacher, player, "
    "singer, musician, painter, bride, groom, father, mother, grandmother, grandfather, businessman, businesswoman, "
    "fireman, firefighter, hiker, climber, toddler, teenager, warrior, clown, samurai, ballerina",
    "door": "gate, doorway, front door",
    "table": "dining table, picnic table, kitchen table, wooden table",
    "mountain": "mount, peak, volcano, summit, cliff",
    "plant": "bush, shrub, fern, cactus, houseplant, house plant, potted plant, hedge, ivy",
    "curtain": "drape, curtains, drapes",
    "chair": "dining chair, rocking chair, deck chair, wheelchair",
    "car": "automobile, sedan, taxi, cab, sports car, jeep, limousine, convertible, police car, race car, "
    "racing car, station wagon, hatchback, suv",
    "painting": "picture, portrait, canvas, fresco",
    "sofa": "couch, settee, loveseat",
    "house": "home, cottage, bungalow, farmhouse, villa, mansion, chalet, cabin, log cabin, tree house, treehouse, "
    "dollhouse, townhouse",
    "rug": "carpet, doormat, door mat",
    "armchair": "easy chair, recliner",
    "fence": "picket fence",
    "desk": "writing desk, school desk",
    "rock": "stone, boulder, pebble",
    "wardrobe": "closet",
    "lamp": "table lamp, desk lamp, floor lamp, lantern",
    "bathtub": "bath, tub, hot tub",
    "railing": "guardrail, handrail",
    "cushion": "bolster",
    "box": "crate, carton, parcel, package, gift box, cardboard box",
    "column": "pillar",
    "signboard": "sign, road sign, street sign, traffic sign, stop sign, billboard",
    "chest of drawers": "dresser, bureau",
    "sink": "washbasin, basin",
    "skyscraper": "high-rise, office tower",
    "refrigerator": "fridge, icebox",
    "grandstand": "bleachers",
    "stairs": "staircase, steps, stairway",
    "runway": "airstrip, landing strip",
    "pool table": "billiard table, snooker table",
    "bridge": "footbridge, drawbridge, viaduct, suspension bridge",
    "bookcase": "bookshelf",
    "blind": "venetian blind, window blind, shutter",
    "toilet": "lavatory, loo",
    "flower": "rose, tulip, daisy, sunflower, lily, orchid, poppy, dandelion, bouquet, daffodil, blossom",
    "book": "notebook, novel, magazine, comic book",
    "hill": "hillside, mound, dune, knoll",
    "bench": "park bench, pew",
    "stove": "cooker",
    "palm": "palm tree, coconut palm, coconut tree",
    "computer": "laptop, desktop computer, laptop computer",
    "boat": "rowing boat, rowboat, canoe, kayak, dinghy, gondola, sailboat, sailing boat, fishing boat, motorboat, "
    "speedboat, houseboat",
    "bus": "school bus, double-decker, double-decker bus",
    "light": "light bulb, spotlight",
    "truck": "lorry, pickup, pickup truck, fire engine, fire truck, tractor",
    "tower": "clock tower, water tower, bell tower, lighthouse, windmill, steeple, minaret, church tower",
    "streetlight": "street lamp, street light, lamppost, lamp post",
    "television receiver": "television, tv, television set, tv set",
    "airplane": "plane, aeroplane, jet, aircraft, airliner, biplane, jet plane, fighter jet",
    "apparel": "clothing, clothes, dress, coat, jacket, shirt, hat, trousers",
    "pole": "flagpole, flag pole, telegraph pole",
    "bottle": "wine bottle, water bottle, beer bottle",
    "poster": "placard",
    "van": "minivan, minibus, camper, camper van, delivery van",
    "ship": "sailing ship, steamship, cruise ship, ferry, yacht, galleon, warship, pirate ship, tall ship, liner",
    "plaything": "toy, doll, teddy bear, teddy, toy car, toy train",
    "swimming pool": "pool",
    "barrel": "cask, keg",
    "basket": "hamper, wicker basket",
    "waterfall": "cascade",
    "tent": "teepee, tipi, wigwam, marquee",
    "bag": "handbag, backpack, rucksack, suitcase, purse, satchel, briefcase",
    "minibike": "motorbike, motorcycle, moped, scooter",
    "ball": "football, soccer ball, basketball, tennis ball, beach ball, baseball, volleyball",
    "food": "cake, pizza, burger, hamburger, sandwich, bread, fruit, apple, banana, pear, cheese, salad, pie, "
    "cookie, strawberry, donut, doughnut, sushi, pancake, lemon, cupcake",
    "pot": "flowerpot, flower pot, saucepan, plant pot, teapot, kettle, cauldron",
    "animal": "dog, cat, horse, cow, sheep, bird, lion, tiger, elephant, giraffe, zebra, bear, rabbit, fox, wolf, "
    "deer, duck, swan, goose, chicken, hen, rooster, cockerel, pig, goat, donkey, camel, monkey, mouse, rat, "
    "squirrel, fish, shark, whale, dolphin, owl, eagle, parrot, penguin, butterfly, frog, turtle, snake, puppy, "
    "kitten, pony, foal, calf, lamb, panda, koala, kangaroo, crow, raven, seagull, flamingo, peacock, hedgehog, "
    "polar bear, brown bear, black bear, goldfish, bull, ox, leopard, cheetah, hippo, rhino, beetle, bee",
    "bicycle": "bike, racing bike, mountain bike",
    "screen": "projection screen, cinema screen",
    "blanket": "quilt, duvet",
    "sculpture": "statue, bust, statuette, snowman",
    "vase": "urn, jug, pitcher",
    "traffic light": "traffic lights, stoplight",
    "ashcan": "bin, rubbish bin, dustbin, trash can, garbage can, litter bin",
    "fan": "ceiling fan",
    "pier": "jetty, wharf, dock",
    "plate": "dish, saucer",
    "monitor": "computer monitor, computer screen",
    "bulletin board": "noticeboard, pinboard",
    "radiator": "heater",
    "glass": "wine glass, tumbler, goblet, glasses of, beer glass, cup, mug",
    "clock": "wristwatch, alarm clock, wall clock",
    "flag": "banner, pennant",
    "sky": "heaven, night sky, blue sky, starry sky",
    "grass": "lawn, meadow, grassland",
    "road": "street, highway, motorway, lane, avenue",
    "sidewalk": "pavement",
    "sea": "ocean, seaside",
    "sand": "beach, sandy beach, desert",
    "path": "trail, footpath, driveway",
    "lake": "pond",
    "earth": "ground, soil, mud",
    "field": "pasture, cornfield, wheat field, grass field",
})  # fmt: skip
"""By label, what else people call what it labels, in the singular where there is one."""

IDIOMS = frozenset({
    "bus stop", "car park", "parking lot", "power plant", "tank top", "book club", "light year", "sun glasses",
    "glasses", "home town", "palm of", "palm beach", "star wars", "table tennis", "table cloth", "bar code",
    "plate armor", "plate armour", "in case", "step by step", "on stage", "on screen", "oil painting of",
    "painting of", "picture of", "photo of", "portrait of", "drawing of", "poster of", "a bit of", "light rain",
    "light snow", "by car", "by boat", "by bus", "by bike", "house music", "fish eye", "horse power", "ball gown",
    "tree line", "sand castle", "rock band", "rock music", "rock concert", "pool party", "flag ship", "in bed",
    "box office", "food truck window", "at school",
})  # fmt: skip
"""Words that name no object together, though one of them does alone."""
